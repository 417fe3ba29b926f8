"""Finding candidates: the vector index and the channels around it."""
