"""Routed experts of one model, pooled from several hosts over torch.distributed."""
