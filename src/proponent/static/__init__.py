"""Static, gradient-based methods: influence at the trained parameters (survey section 5.1)."""
