"""Errors of pages.

::

    WireError                  a request that is refused; has the answer's status. Also a ValueError
    └── FeedbackNotKeptError   503: the server's store failed; the device sends the feedback again
    PageError                  what the server gave to `make_page` is no page: a bug of the server. Also a ValueError
    UnknownIdError             an id or code that `Ids` does not have; also a KeyError

A body that the contract does not allow raises `pocketrank.device.contract.ContractError`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pocketrank.device.contract import MismatchError

__all__ = ["FeedbackNotKeptError", "PageError", "UnknownIdError", "WireError"]


class WireError(ValueError):
    """A request that is refused before the contract is looked at. `status` and `headers` are the answer's."""

    def __init__(self, status: int, path: str, expected: str, got: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.status, self.path, self.expected, self.got, self.headers = status, path, expected, got, headers or {}


class FeedbackNotKeptError(WireError):
    """The server's store could not keep the events of a batch. Its cause is the error of the store."""

    def __init__(self) -> None:
        super().__init__(503, "$", "a store that keeps the feedback", "one that failed; send it again", {"Retry-After": "1"})


class PageError(MismatchError, ValueError):
    """What the server gave to `make_page` is no page. `where` is the argument; `hint` says what to do."""

    def __init__(self, where: str, expected: str, got: str, hint: str = "") -> None:
        super().__init__(f"`{where}`", expected, got)
        if hint:
            self.args = (f"{self.args[0]}. {hint}",)


class UnknownIdError(MismatchError, KeyError):
    """An id or code that `Ids` does not have."""

    __str__ = Exception.__str__  # KeyError's puts quotes around the message
