import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.access.limits import TokenScope
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.streams.messages import ServedPage
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import Page
from tests.cloud.serving.live import JSON, MSGPACK, Answer, Live, live, request, until
from tests.cloud.small_published import small_run

_TOML = "[page]\nsize_max = 200\n[limits]\npage_ms = 60_000\n"


class Editor:
    """A server of two processes, and those who call it."""

    def __init__(self, server: Live, tokens: dict[TokenScope, str], db: Path) -> None:
        self._server, self._tokens, self.db = server, tokens, db

    def change(self, method: str, path: str, body: object, scope: TokenScope = "publish") -> Answer:
        headers = {**JSON, "Authorization": f"Bearer {self._tokens[scope]}"}
        return self._server.send(method, path, msgspec.json.encode(body), headers)

    def page(self, **more: Any) -> Page:
        headers = {**MSGPACK, "Authorization": f"Bearer {self._tokens['device']}"}
        answer = self._server.send("POST", "/v1/page", to_msgpack(request(size=200, **more)), headers)
        assert answer.status == 200, answer.body
        return from_msgpack(answer.body, Page)

    def metric(self, sample: str) -> float:
        return self._server.metric(sample, {"Authorization": f"Bearer {self._tokens['admin']}"})

    def has(self, item: int) -> list[bool]:
        """Whether pages have an item, of several, since either process may make one."""
        return [item in from_block(self.page().candidates.item_id).tolist() for _ in range(8)]


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    folder = tmp_path_factory.mktemp("catalogue")
    run, db, tokens = small_run(folder / "run").folder, folder / "feedback.db", folder / "tokens.json"
    now_ms, scopes = int(1000 * time.time()), get_args(TokenScope)
    by_scope = {scope: issue_token(tokens, (scope,), now_ms=now_ms, lasts_ms=86_400_000).token for scope in scopes}
    (folder / "pipeline.toml").write_text(_TOML)
    config = ServingConfig(pipeline=PipelineConfig.open(folder / "pipeline.toml"), folder=folder, workers=2, tokens=tokens)
    with live(run, db, config=config) as server:
        yield Editor(server, by_scope, db)


def test_an_item_is_put_and_removed_in_every_process(editor: Editor) -> None:
    put = {"item_id": 1 << 40, "duration_ms": 20_000, "category": 3, "author_id": 5, "upload_ms": 1_700_000_000_000}
    answer = editor.change("PUT", "/v1/items", {"items": [put]})
    assert (answer.status, answer.json()) == (200, {"accepted": 1, "refused": []})
    until(lambda: all(editor.has(1 << 40)), "pages of every process have the new item")
    assert editor.change("DELETE", "/v1/items", {"item_ids": [1 << 40]}).json()["accepted"] == 1
    until(lambda: not any(editor.has(1 << 40)), "no page has the removed item")


def test_one_that_cannot_be_used_stops_none_of_the_others(editor: Editor) -> None:
    items = [
        {"item_id": 51, "floats": {"nothing": 1.0}},
        {"item_id": 52, "duration_ms": -1},
        {"item_id": 53, "category": "a text that no dictionary has"},
        {"item_id": 54, "upload_ms": 1 << 62},
        {"item_id": 55, "categories": {"other": 1}},
        {"item_id": 1 << 63},
        {"item_id": 56, "duration_ms": 100},
    ]
    receipt = editor.change("PUT", "/v1/items", {"items": items}).json()
    assert receipt["accepted"] == 1
    assert [one["index"] for one in receipt["refused"]] == [0, 1, 2, 3, 4, 5]
    assert all(one["reason"].startswith("Expected") for one in receipt["refused"])
    assert editor.change("DELETE", "/v1/items", {"item_ids": [56]}).json()["accepted"] == 1


def test_users_are_put_and_removed(editor: Editor) -> None:
    users = [{"user_id": 7, "categories": {"age": 3}, "floats": {"x": 0.5}}, {"user_id": 8, "categories": {"age": "old"}}]
    receipt = editor.change("PUT", "/v1/users", {"users": users}).json()
    assert (receipt["accepted"], [one["index"] for one in receipt["refused"]]) == (1, [1])
    assert editor.change("DELETE", "/v1/users", {"user_ids": [7]}).json()["accepted"] == 1


def test_a_device_may_not_change_the_catalogue(editor: Editor) -> None:
    assert editor.change("PUT", "/v1/items", {"items": []}, scope="device").status == 403
    assert editor.change("DELETE", "/v1/items", {"item_ids": []}, scope="device").status == 403


@pytest.mark.parametrize("body", [{}, {"items": [{}]}, {"items": [{"item_id": 1.5}]}, {"items": [{"item_id": 1}] * 1001}])
def test_a_body_of_another_form_is_refused(editor: Editor, body: object) -> None:
    assert editor.change("PUT", "/v1/items", body).status == 400


def test_every_page_is_kept_as_it_was_served(editor: Editor) -> None:
    page = editor.page(user_id=3, session_id="kept", experiment="e")
    feedback = SqliteFeedbackLog(editor.db)
    log = SqliteEventLog(feedback.events, feedback)
    kept = next(
        one
        for record in log.read("pages", {}, 10_000).records
        if (one := from_msgpack(record.value, ServedPage)).page_id == page.page_id
    )
    log.close()
    feedback.close()
    assert kept.item_id == page.candidates.item_id.data
    assert (kept.session_id, kept.experiment, kept.inputs.user_id, kept.sequence) == ("kept", "e", 3, 0)
    names, values = page.candidates.floats.names, from_block(page.candidates.floats.values)
    pxtr = values[:, [i for i, name in enumerate(names) if name.startswith("pxtr_")]]
    assert kept.pxtr == pxtr.tobytes(), "byte for byte"
    assert len(kept.channel) == len(pxtr)
    assert kept.channels == ("popular", "two_tower")


def test_metrics_say_what_was_applied(editor: Editor) -> None:
    assert editor.metric("pocketrank_parameters") == 0
    assert editor.metric('pocketrank_topic_changes{kind="items_put"}') >= 1
