"""How long an import takes and how much memory, beside Polars and DuckDB that merely read the same files.

Run `python -m benchmarks.data --rows 1e5,1e6,1e7 --json FILE`. The log is synthetic: CSV with text ids of users and whole
numbers of items, nearly in the order of time, as servers write it. Each subject runs in a process of its own, whose largest
resident memory is measured; the files are in the cache of the operating system. Import reads, checks, sorts, takes equal rows
once, gives texts their codes, and writes files of days; the peers put all columns into memory and do nothing else.
`duckdb_sorted` reads, sorts and writes one Parquet file in one query of DuckDB: what is left of an import without its checks,
codes, days and digest.
`train` is one pass of the full ranker over the log that `import` wrote; `python -m benchmarks.data.subject train FOLDER` makes
it again over the log in `FOLDER/log`.
"""
