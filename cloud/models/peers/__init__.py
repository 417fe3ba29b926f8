"""Published reranking models, after their papers, with the inputs and the heads of the device model.

They serve the comparison in `benchmarks.quality` alone.
"""
