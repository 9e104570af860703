"""Numba kernels: pure functions over arrays, ``out``/``state_*`` last, no allocation, no exceptions."""
