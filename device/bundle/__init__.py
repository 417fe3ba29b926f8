"""Bundles of models: their format, how they are read and checked, and whose signatures are trusted.

Modules of this folder read, verify and write one bundle in a folder. How a bundle is fetched is in `pocketrank.device.network`,
and which one a device runs in `pocketrank.device.updates`.
"""

from pocketrank.device.bundle.bundle import *
from pocketrank.device.bundle.files import *
from pocketrank.device.bundle.signing import *
