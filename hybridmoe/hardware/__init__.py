"""This machine: memory, topology, instruction sets, GPU, disk; detected and measured."""
