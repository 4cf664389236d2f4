"""Numba kernels: arrays in, arrays out. They know nothing of models or files."""
