"""From a trained run to a bundle: ONNX, LiteRT and Core ML, each held to torch before it is shipped.

Start at `bundle.export_bundle`. `graphs` is what all formats have in common, the model whole and in stages, `search_graph` its
list search. `onnx`, `tflite` and `coreml` convert, `cut` finds the stages in what was converted. `parity`, `parity_stages` and
`gate` hold the results to torch, `worker` runs a format in a process of its own.
"""
