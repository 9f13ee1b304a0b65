"""Placement: carries a memory plan out, decides nothing."""
