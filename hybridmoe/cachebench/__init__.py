"""`hybridmoe bench cache`: what a cache of experts would gain on a routing trace."""
