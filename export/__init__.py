"""Export of a trained run to a bundle: converters to ONNX, LiteRT and Core ML, and the checks that each model must pass.

Start at `bundle.export_bundle`. `graphs` is the model that all formats convert, whole and in stages, and `search_graph` its
list search. `onnx`, `tflite` and `coreml` convert, `cut` and `tflite_cut` separate the stages of a converted graph. `parity`,
`parity_stages` and `gate` compare the results with torch, `worker` runs a format in a process of its own. `golden` and
`signing` write what devices verify, `explain` shows why a model scored as it did.

What belongs here: everything between a run's weights and a bundle's files. Training is in `pocketrank.cloud`, and running an
exported model in `pocketrank.device`.
"""
