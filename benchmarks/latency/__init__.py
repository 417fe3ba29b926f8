"""How fast a swipe is on the device, beside its peers and beside the limit that this core's matrix products set.

Run `python -m benchmarks.latency --json FILE`. A file belongs here when it times or weighs what runs on the device: the model
and its stages, list searches, swipes through the SDK, memory, imports. A peer or a limit is measured in the same rounds.

The report is `presets.<name>` for each preset that is measured; the figures of the first one are also at the top. Times are
medians in milliseconds unless they say p99; the lists are the longest of the spec. Of the split form::

    rerank.{onnx,tflite,executorch,torch}     p50_ms, p99_ms, ratio_to_limit      a run of the whole model; null: not installed
    incremental.{onnx,tflite}     page_ms; event_ms (one event), watch_ms, their sum swipe_ms; full_ms, the whole model;
                                  speedup = full_ms / swipe_ms; limit_ms and ratio_to_limit of the swipe
    swipe.{onnx,tflite}           p50_ms, p99_ms, run_p50_ms, outside_p50_ms, sdk_overhead_share     feedback(event) and next()
    swipe_whole, swipe_search     the same with the whole model, and with the list search in the graph
    swipe_equipped.KIND.{onnx,tflite}      the same with strategies, a watchdog and telemetry; added_ms, added_share: what that
                                  adds, by the model's runs; over_run_share: all of the SDK by them
    swipe_durable.KIND            swipe_equipped with a durable outbox too
    search.{onnx,tflite}          host_ms, in_graph_ms, their ratio, mean number of steps      a ranker's order with a beam
    beam                          stability and relative_cost by number of steps when no search stops early, found on the host
                                  in `runtime` with `weights` on `lists` of test rows or random ones
    bytes.{onnx,tflite}           of the whole model's file, of its stages', and of all
    flop, flop_swipe              operations of the matrix products of the whole model, of one event and `watch` (`arithmetic`)
    limit_ms                      flop at the best rate
    fastest                       the runtime with the fastest swipe, of which the next two are
    ratio_to_limit                p50 of a run of the whole model by limit_ms
    sdk_overhead_share            share of a swipe outside the model's runs
    torch_eager                   rerank.torch

And for the preset::

    forms.{split,self_contained}  all of the above for each form
    matmul_gflop_s                this core's rate, `best` and by library and size (`matmul`)
    memory                        device_process_mib, above_bare_mib: peak of a process with one session, and above a bare one
    memory.{onnx,tflite}          the same by runtime
    imports                       bare_ms, session_above_ms, all_above_ms: a process that imports (`fresh`)
    weights, candidates, events   what was measured
"""
