"""Pages of a team's own server: from its items and scores to what a device of the SDK understands, and back.

A team that keeps its own retrieval and ranker needs two routes, in any Python web framework:

- `POST /v1/page`: `read` the `PageRequest`, `make_page` of the ranked items, `answer` it.
- `POST /v1/feedback`: `read` the `FeedbackBatch`, let `receive_batch` keep its events, `answer` the receipt.

`error_answer` is the answer to every error of the two. Texts as ids have codes on the wire (`Ids`). This package needs numpy
and msgspec only. A complete server is in `docs/own-cloud.md`, and the wire contract in `docs/contract.md`.
"""

from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest
from pocketrank.pages.errors import FeedbackNotKeptError, PageError, UnknownIdError, WireError
from pocketrank.pages.feedback import receive_batch, receive_with
from pocketrank.pages.http import Answer, ErrorBody, answer, error_answer, read
from pocketrank.pages.ids import Ids
from pocketrank.pages.page import make_page

__all__ = [
    "Answer",
    "ErrorBody",
    "FeedbackBatch",
    "FeedbackEvent",
    "FeedbackNotKeptError",
    "FeedbackReceipt",
    "Ids",
    "Page",
    "PageError",
    "PageRequest",
    "UnknownIdError",
    "WireError",
    "answer",
    "error_answer",
    "make_page",
    "read",
    "receive_batch",
    "receive_with",
]
