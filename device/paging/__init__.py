"""Paging policies: when a device requests the next page, and for how many candidates.

`base` is the seam. `fixed` requests after a fixed number of impressions, `threshold` when the remaining candidates have little
value, `uplift` when a fresh page is predicted to gain more than it costs. `moment` records what the policies read of a session.
"""

from pocketrank.device.paging.base import *
from pocketrank.device.paging.fixed import *
from pocketrank.device.paging.moment import *
from pocketrank.device.paging.threshold import *
from pocketrank.device.paging.uplift import *
