"""The Python API: load a model, chat, generate."""
