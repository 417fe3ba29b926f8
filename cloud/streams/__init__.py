"""The log of accepted feedback."""
