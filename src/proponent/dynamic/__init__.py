"""Dynamic, gradient-based methods: influence along the path that training took (section 5.2)."""
