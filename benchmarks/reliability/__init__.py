"""Losses, repeats and refusals of a device and of the cloud that are killed, overloaded, attacked, or cut off.

Run `python -m benchmarks.reliability --device --json FILE`, or `--cloud`. The report has one key, `device`
(`benchmarks.reliability.device`) or `cloud` (`benchmarks.reliability.cloud`); with `--only` it has the named parts alone. A
benchmark reports and does not judge: the exit code is 0 whatever the figures.

A file belongs here when it breaks something on purpose (a process, a network, a disk, a bundle, a server under too much load)
or counts what that lost. Speed in good times is measured by `benchmarks.latency` and `benchmarks.serving`.
"""
