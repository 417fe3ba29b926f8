"""Model runtimes behind one seam. `open_runtime` selects one by format and imports only that one."""

from pocketrank.device.runtimes.base import *
from pocketrank.device.runtimes.opening import *
