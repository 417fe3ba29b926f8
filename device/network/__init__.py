"""Calls to the cloud over HTTP, by the standard library alone.

Modules of this folder make one call and return its answer or an error. When to ask for a page, to retry or to update is decided
elsewhere: in `pocketrank.device.session`, `pocketrank.device.offline` and `pocketrank.device.updates`.
"""
