"""Impression logs: schema, loaders, validation, training samples and item statistics.

A loader of another source returns an `ImpressionLog` and belongs here. The features of feedback are here too
(`pocketrank.cloud.data.feedback`), because training and serving share them. Nothing is imported here: the other modules need
pyarrow, which a server does not have.
"""
