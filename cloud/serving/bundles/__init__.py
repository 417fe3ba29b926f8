"""Bundles that the server has: what is served, what was uploaded, and the checks between. Nothing here knows a route."""
