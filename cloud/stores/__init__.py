"""Embedding tables: rows of fp16 by id, one table a split version."""
