"""Weights that processes share: the arena, GPU memory, and what protects them."""
