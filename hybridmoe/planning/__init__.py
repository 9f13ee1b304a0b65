"""Memory planning: sizes and budgets to a plan, a plan to seconds. No compiled extension needed."""
