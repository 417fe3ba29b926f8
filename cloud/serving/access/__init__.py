"""Who may call: bearer tokens, their file, scopes and rate limits. Checks that a request passes before it is read."""
