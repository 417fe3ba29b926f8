"""Data that waits for the network or survives the end of the process: feedback, pages and small named states.

Modules of this folder queue, save and upload; a single call to the cloud is in `pocketrank.device.network`. A session without a
store and an uploader imports neither SQLite nor the client.
"""
