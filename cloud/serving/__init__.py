"""The HTTP server: pages, feedback, the bundle, health and metrics."""
