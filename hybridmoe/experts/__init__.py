"""Where each routed expert lives, and who computes it."""

from hybridmoe.experts.backend import CpuExperts, ExpertBackend, ExpertWeights

__all__ = ["CpuExperts", "ExpertBackend", "ExpertWeights"]
