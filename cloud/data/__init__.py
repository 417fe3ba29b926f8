"""Impression logs: the schema, the loader of the public KuaiRand layout, validation, splitting, opening saved logs."""
