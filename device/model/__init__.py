"""The model's side of a session: its inputs, and the arithmetic around its outputs.

This folder holds plain numpy code that builds what a model reads (`features`, `history`, `remaining`), adapts what it returns
(`personal`), and searches for lists with it (`search`). Nothing here opens a model, reads a bundle or knows a session: models
are opened by `pocketrank.device.runtimes` and used by `pocketrank.device.ranking`.
"""
