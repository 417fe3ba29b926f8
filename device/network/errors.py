"""Errors of calls to the cloud.

::

    ClientError                a call that did not bring an answer; names the method and URL
    ├── BadUrlError            a base URL that no call can be made to
    ├── UnreachableError       no server, no such host, a connection that broke, or no answer in time
    ├── BadStatusError         an answer other than 200; carries `status` and the beginning of the text
    └── BadAnswerError         200 with something that is not what was asked for, or more than is allowed
"""

from __future__ import annotations

__all__ = ["BadAnswerError", "BadStatusError", "BadUrlError", "ClientError", "UnreachableError"]


class ClientError(RuntimeError):
    """A call that did not bring an answer. `call` is the method and URL."""

    def __init__(self, call: str, message: str) -> None:
        super().__init__(f"{call}: {message}")
        self.call = call


class BadUrlError(ClientError):
    """A base URL that no call can be made to."""


class UnreachableError(ClientError):
    """No server, no such host, a connection that broke, or no answer in time."""


class BadStatusError(ClientError):
    """An answer other than 200."""

    def __init__(self, call: str, status: int, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(call, f"expected status 200, got {status}: {text}")
        self.status, self.text = status, text
        self.retry_after_s = retry_after_s
        """How long the server asks to be left alone, where it says so in seconds."""


class BadAnswerError(ClientError):
    """200 with something that is not what was asked for, or more than is allowed."""
