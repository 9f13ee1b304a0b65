"""Strings to token ids and back: vocabulary, chat template, tool calls, stop strings."""
