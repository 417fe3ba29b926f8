"""What a demo leaves to read: `report.html`, one file that needs nothing else, and `report.json`, every figure.

`files` writes both, `page` is the HTML, `plots` draws.
"""

from pocketrank.sdk_demo.report.files import write_report
from pocketrank.sdk_demo.report.page import html_page

__all__ = ["html_page", "write_report"]
