"""The contract between cloud and device: every struct that crosses the wire, and the manifest of a bundle.

The layout on the wire is columnar: a page holds one `Block` per column group, never an object per candidate. Every top-level
struct carries `version`. A reader ignores fields that it does not know and rejects a version that it does not know (`codec`).

Units: fields named `*_ms` are milliseconds, and those that are points in time count from the Unix epoch in UTC. Volume is in
0..1, scroll speed in screens per second. Errors are in `errors`.
"""

from pocketrank.device.contract.bundle import *
from pocketrank.device.contract.errors import *
from pocketrank.device.contract.feedback import *
from pocketrank.device.contract.golden import *
from pocketrank.device.contract.ids import *
from pocketrank.device.contract.page import *
from pocketrank.device.contract.paging import *
from pocketrank.device.contract.release import *
from pocketrank.device.contract.spec import *
from pocketrank.device.contract.telemetry import *
from pocketrank.device.contract.views import *
from pocketrank.device.contract.wire import *
