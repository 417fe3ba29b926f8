"""Reports of a server about itself and its devices: metrics, logs and traces. Nothing here changes an answer."""
