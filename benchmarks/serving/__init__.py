"""How fast the cloud makes pages, beside the ranking model's own run, beside peers, and as the catalogue grows.

Run `python -m benchmarks.serving --json FILE`. A server has one core. The load comes from another process on another core: a
closed loop of keep-alive connections over loopback, with users drawn at random and prebuilt MessagePack bodies. Everything is
measured in rounds, all servers of a part in turn; a figure is the median over rounds. 500 candidates are ranked, and 30 are
returned with vectors of 64. The tables and the models' weights are random, in the architecture that is trained
(`benchmarks.serving.published`), which changes no time. A file belongs here when it serves pages, ours or a peer's, loads such
a server, or makes what it serves; a server that is meant to fail belongs to `benchmarks.reliability`. The report::

    page.{rps,p50_ms,p99_ms,bytes}   requests without feedback: those that the peers answer too; cpu_ms: CPU time of the
                                     server's process a request, measured by the kernel
    page.with_feedback               the same with 10 events in each request, which are on disk before the page goes out, as
                                     devices send them; ratio_to_model as below
    model_ms                         CPU time of a run of the ranking model alone, whole: plain onnxruntime, one thread, the
                                     server's core, hot, in the same rounds (model_p50_ms: wall time)
    model_served_ms                  the same of the graph that the product runs, whose part of an item is computed beforehand
    ratio_to_model                   (page.cpu_ms - model_ms) / model_ms: all other CPU time of a request by the model's;
                                     ratio_to_model_served: by the served graph's
    peers.NAME.{rps,p50_ms,p99_ms}   the same page, made by hand of faiss, the whole ranking model in onnxruntime and numpy
                                     (`by_hand`), behind fastapi_plain (a decorated route, pydantic models), fastapi_msgpack
                                     (a raw body, in the event loop), mosec, litserve. They look at no version, filter or
                                     deadline, follow no feedback, and count and log nothing
    peers_ours, peers_best           the product in the same rounds, and the peer with the most requests a second
    peers_ratio                      requests a second of the product by those of that peer; peers_cpu_ratio: by CPU time, that
                                     of the peer with the least by the product's
    http.{ours_rps,raw_asgi_rps}     one constant page behind the product's stack, and behind the smallest ASGI application
                                     under the same uvicorn; their ratio; cpu_ratio: the same by CPU time, which other work on
                                     the machine does not blur
    growth.{items,p99_ms,p99_ratio}  the page on catalogues of several sizes, and the last p99 by the first
    growth.bytes_per_item            memory that one more item takes: proportional set size of the server after the load, the
                                     largest catalogue's less the smallest's
    stores                           rows of embeddings out of each store (`benchmarks.stores`)
    setup                            what was measured; cores_shared is true where there was only one core for both

Each server has these figures too. answers: all of them have status 200, because any other ends the benchmark. load_busy: the
share of the time in which the load's process computed; it was no bottleneck where that is far below 1. others_share: the share
of the server's core that other processes took. Where it is not near 0, requests a second mean less than CPU time does: a server
of several processes then gets more of the core than one of a single process.
"""
