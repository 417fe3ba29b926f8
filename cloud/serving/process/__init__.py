"""Processes that serve: the socket, TLS, workers and their supervisor, start and end. Nothing about pages or HTTP routes."""
