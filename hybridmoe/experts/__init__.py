"""Where each routed expert lives, and who computes it."""

from hybridmoe.experts.backends import CpuExperts, ExpertBackend, ExpertWeights

__all__ = ["CpuExperts", "ExpertBackend", "ExpertWeights"]
