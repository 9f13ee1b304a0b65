"""One module for each API: its requests turned into runs, its answers made of them."""
