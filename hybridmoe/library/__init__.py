"""Models on this machine by name: the models folder, what is in it, and what was used last."""
