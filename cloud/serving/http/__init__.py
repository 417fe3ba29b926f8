"""HTTP itself: bodies, encodings, errors, observation and documentation, for whatever route. No route's own work."""
