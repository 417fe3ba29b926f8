"""What a server reports about itself and its devices: metrics, logs and traces. Nothing here changes an answer."""
