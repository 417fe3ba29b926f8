"""What waits while there is no network, and what survives the end of the process: feedback, pages, and small named things."""
