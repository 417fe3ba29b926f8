"""Vector indexes: the interface, a backend in each file, and their parts.

An index finds ids by inner product. What returns the vectors of given ids is in `stores`.
"""
