"""Devices that compute the dense part, their streams, and their errors."""
