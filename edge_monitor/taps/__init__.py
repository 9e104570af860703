"""Activations without changing the answer."""
