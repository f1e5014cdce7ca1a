"""Per-instance gradients without forming them: capture, products, projections."""
