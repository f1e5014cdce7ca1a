"""Influence for tree ensembles: leaf views and the methods on them."""
