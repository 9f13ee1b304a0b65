"""Memory planning: sizes and budgets to a plan, a plan to seconds.

Pure: works without the compiled extension and without torch, so that a plan can be made anywhere.
"""
