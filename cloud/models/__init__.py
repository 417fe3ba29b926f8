"""Torch models: the full ranker, both halves of the device model, and the layers that they share.

A module here defines a network, and neither trains nor exports it. `peers` has published models to compare with. Nothing is
imported here: a server reads `pocketrank.cloud.models.presets` and has no torch.
"""
