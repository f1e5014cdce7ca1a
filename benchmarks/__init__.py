"""Benchmarks: what an influence matrix costs, as a ratio to the floor, next to peers.

The floor is one plain mini-batched forward and backward pass (all weight gradients) over the
training set per checkpoint. ``python -m benchmarks --help`` lists the workloads;
``RESULTS.md`` holds the last measured tables.
"""
