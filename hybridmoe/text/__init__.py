"""Text to token ids and back: tokenizers, chat templates, tool calls, grammars, stop strings."""
