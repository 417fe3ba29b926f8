"""The line to the cloud, by the standard library alone."""
