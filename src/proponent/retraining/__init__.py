"""Retraining-based methods: influence by training on subsets (survey section 4)."""
