"""Inspection of bundles (`bundle`) and of session traces (`session`), as reports of plain values.

What belongs here: code that reads what others wrote and changes nothing. `pocketrank.sdk_demo.cli.inspection` prints the
reports.
"""

from pocketrank.sdk_demo.inspection.bundle import inspect_bundle
from pocketrank.sdk_demo.inspection.session import inspect_session, why

__all__ = ["inspect_bundle", "inspect_session", "why"]
