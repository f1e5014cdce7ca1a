"""Solvers of linear systems of a curvature: ``(C + shift I) x = b``, one method a file."""
