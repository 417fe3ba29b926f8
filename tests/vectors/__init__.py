"""Committed vectors that every implementation of the contract must reproduce. `tests.vectors.generate` writes them."""
