"""Routes, one module for each API: requests to inputs, generations to responses."""
