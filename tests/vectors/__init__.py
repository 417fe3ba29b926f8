"""Committed vectors that every implementation of the contract is held to. `python -m tests.vectors.generate` makes them."""
