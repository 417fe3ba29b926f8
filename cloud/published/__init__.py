"""The published half of a run as serving reads it: its tables, and the ONNX graphs that run over their rows."""
