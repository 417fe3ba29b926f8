"""What a session reports on itself.

`telemetry` counts and times for the team that ships the app, and leaves the device; `trace` writes each decision down for
developers, and stays on it. A module belongs here when it describes what the SDK did and no order depends on it.
"""
