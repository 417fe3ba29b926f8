"""Load: queues before pages and feedback, and the compute price, keep answers in time. Nothing about HTTP."""
