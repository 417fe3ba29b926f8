"""From a trained run to a bundle: ONNX, LiteRT and Core ML, each held to torch before it is shipped.

Start at `bundle.export_bundle`. `graphs` is what all formats have in common, `onnx`, `tflite` and `coreml` convert, `parity`
and `gate` hold the results to torch, `worker` runs a format in a process of its own.
"""
