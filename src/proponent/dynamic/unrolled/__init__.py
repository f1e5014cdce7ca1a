"""Derivatives of a recorded training run, step by step: hypergradients and their adjoints."""
