"""What high-dimensional representers are made of: models, losses, penalties, kernels, solvers."""
