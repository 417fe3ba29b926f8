"""Pages from requests and feedback: the engine, user states and split versions of a process. Nothing here knows of HTTP."""
