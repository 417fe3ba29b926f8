"""What keeps answers in time under load: queues before pages and feedback, and the compute price. Nothing about HTTP."""
