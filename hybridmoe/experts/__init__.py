"""Routed experts: their weights, the backends that compute them, caches, statistics, traces."""

from hybridmoe.experts.backend import CpuExperts, ExpertBackend
from hybridmoe.experts.routed_experts import ExpertWeights, RoutedExperts

__all__ = ["CpuExperts", "ExpertBackend", "ExpertWeights", "RoutedExperts"]
