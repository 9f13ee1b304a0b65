"""Expert offload to disk: a RAM cache of routed experts, read from the GGUF file on a miss."""
