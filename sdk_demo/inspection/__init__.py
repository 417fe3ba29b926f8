"""What a bundle holds and whether it works here (`bundle`); what a session decided, and why (`session`). All plain values."""

from pocketrank.sdk_demo.inspection.bundle import inspect_bundle
from pocketrank.sdk_demo.inspection.session import inspect_session, why

__all__ = ["inspect_bundle", "inspect_session", "why"]
