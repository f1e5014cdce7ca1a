"""Closed forms of the games that k nearest neighbours play."""
