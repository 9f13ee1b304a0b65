"""Devices of the dense part, their streams, and their errors."""
