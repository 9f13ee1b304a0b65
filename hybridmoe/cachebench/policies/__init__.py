"""Cache policies that only the study runs; the live ones are in `experts.policy`."""
