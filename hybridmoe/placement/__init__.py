"""Carries a memory plan out: reads weights into RAM and VRAM, decides nothing."""
