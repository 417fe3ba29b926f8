"""Errors of calls to the cloud.

::

    ClientError                a call without a usable answer; names the method and URL
    ├── BadUrlError            a base URL or token that no call can be made with
    ├── NoTokenError           the app has no token now
    ├── UnreachableError       no server, no such host, a broken connection, or no answer in time
    ├── BadStatusError         a status other than 200; carries `status` and the beginning of the text
    └── BadAnswerError         status 200 with an unexpected body, or with one that is too long
"""

from __future__ import annotations

from pocketrank.device.contract import MismatchError

__all__ = ["BadAnswerError", "BadStatusError", "BadUrlError", "ClientError", "NoTokenError", "UnreachableError"]


class ClientError(MismatchError, RuntimeError):
    """A call without a usable answer. `where` is the method and URL."""


class BadUrlError(ClientError):
    """A base URL or token that no call can be made with."""


class NoTokenError(ClientError):
    """The app has no token now: what it gave to return one raised an error, or returned something else."""


class UnreachableError(ClientError):
    """No server, no such host, a broken connection, or no answer in time."""

    def __init__(self, where: str, got: str) -> None:
        super().__init__(where, "a whole answer", got)


class BadStatusError(ClientError):
    """A status other than 200. `text` is the beginning of the answer's body."""

    def __init__(self, where: str, status: int, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(where, "status 200", f"{status}: {text}" if text else str(status))
        self.status, self.text = status, text
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait before the next call; None when it does not say so in seconds."""

    @property
    def refuses_body(self) -> bool:
        """Whether the status blames what was sent. A token (401) or an address (404) may be corrected later."""
        return self.status in (400, 413, 422)


class BadAnswerError(ClientError):
    """Status 200 with an unexpected body, or with one that is too long."""
