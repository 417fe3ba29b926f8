"""Report of a demo: `report.html`, one file without external resources, and `report.json` with every figure.

`files` writes both, `page` is the HTML, `plots` draws the plots. What belongs here: presentation of figures that were computed
elsewhere.
"""

from pocketrank.sdk_demo.report.files import write_report
from pocketrank.sdk_demo.report.page import html_page

__all__ = ["html_page", "write_report"]
