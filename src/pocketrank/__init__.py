"""Rerank a feed on the device, and serve its pages from the cloud.

- `pocketrank.device`: the SDK that an app ships.
- `pocketrank.pages`: pages for it from a team's own server.
- `pocketrank.cloud`: data, models, training, and the server of pages.
- `pocketrank.export`: from a trained run to a bundle for devices.
- `pocketrank.sdk_demo`: the simulated world, emulated phones and the command line.

The folders stand at the top of the repository; `src/pocketrank/` holds links to them.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
