"""Routes of FastAPI: one module for each group of paths. What a route works on is in a folder of its own."""
