"""Codes of ids that grow while serving."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.streams.feedback_log import LogOpenError, LogWriteError
from pocketrank.device.contract import id_code
from tests.cloud.id_dictionaries import coded

BITS = 7
"""Few enough that most of a hundred texts collide."""


def published(folder: Path, count: int = 20, bits: int = BITS) -> PublishedIds:
    """Dictionaries with the users `known-0`, … and no items."""
    codes = coded((f"known-{number}" for number in range(count)), bits)
    return PublishedIds.save(folder, {"user_id": (list(codes.values()), list(codes)), "item_id": ([], [])}, bits)


@pytest.fixture
def run(tmp_path: Path) -> PublishedIds:
    return published(tmp_path / "run")


def users(*texts: str) -> list[tuple[str, str]]:
    return [("user_id", text) for text in texts]


def test_an_unknown_text_is_remembered_with_its_first_feedback(run: PublishedIds, tmp_path: Path) -> None:
    path = tmp_path / "feedback.db-ids"
    with closing(OwnIds(run, path)) as ids, closing(OwnIds(run, path)) as other:
        assert ids.find("user_id", "new") is None
        expected = ids.code("user_id", "new")
        assert ids.find("user_id", "new") is None, "asking writes nothing"
        assert ids.remember(users("new", "known-3")) == {
            ("user_id", "new"): expected, ("user_id", "known-3"): run.code("user_id", "known-3"),
        }  # fmt: skip
        assert other.find("user_id", "new") == other.code("user_id", "new") == expected
        assert other.grown() == [("user_id", "new", expected)]
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(OwnIds(run, path)) as again:
        assert again.find("user_id", "new") == expected


def test_kinds_do_not_collide_with_one_another(tmp_path: Path) -> None:
    with closing(OwnIds(published(tmp_path / "run", 0, 63), tmp_path / "ids")) as ids:
        codes = ids.remember([("user_id", "7"), ("item_id", "7")])
        assert set(codes.values()) == {id_code("7")}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), max_size=80))
def test_no_code_has_two_texts_whoever_saw_them_first(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    run, codes = published(folder), dict[str, int]()
    servers = [OwnIds(run, folder / "ids") for _ in range(3)]
    for server, number in asked:
        (code,) = servers[server].remember(users(f"u-{number}")).values()
        assert codes.setdefault(f"u-{number}", code) == code
    for server in servers:
        server.close()
    codes |= {text: run.code("user_id", text) or 0 for text in (f"known-{number}" for number in range(20))}
    assert len(set(codes.values())) == len(codes)
    with closing(OwnIds(run, folder / "ids")) as again:
        assert {text: again.code("user_id", text) for text in codes} == codes


def test_processes_that_are_killed_agree_on_every_code(tmp_path: Path) -> None:
    bits, count = 10, 300
    published(tmp_path / "run", 50, bits)
    command = [sys.executable, "-m", "tests.cloud.pages.remember_until_killed", str(tmp_path / "run"), str(tmp_path / "ids")]

    def work(number: int) -> Iterator[tuple[str, int]]:
        with subprocess.Popen([*command, str(bits)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for start in range(0, count, 6):
                texts = [f"u-{(start * (number + 1) + i) % count}" for i in range(6)]
                print(json.dumps(texts), file=process.stdin, flush=True)
                if number < 2 and start == 60 * (1 + number):
                    process.kill()  # between the order and its answer: it may be anywhere
                    break
                yield from zip(texts, json.loads(process.stdout.readline()), strict=True)
            process.stdin.close()

    with ThreadPoolExecutor(4) as pool:
        answers = [answer for some in pool.map(lambda number: list(work(number)), range(4)) for answer in some]
    codes = dict(answers)
    assert len(codes) == count
    assert all(codes[text] == code for text, code in answers)
    run = PublishedIds.open(tmp_path / "run", bits)
    known = {run.code("user_id", f"known-{number}") for number in range(50)}
    assert len(known | set(codes.values())) == 50 + count, "a code has two texts"
    assert any(id_code(text, bits) != code for text, code in codes.items()), "no text collides"
    with closing(OwnIds(run, tmp_path / "ids")) as ids:
        assert {text: ids.find("user_id", text) for text in codes} == codes


def test_a_code_that_a_new_run_gives_to_another_text_is_not_used_again(tmp_path: Path) -> None:
    empty = published(tmp_path / "old", 0)
    first = next(text for text in (f"u-{n}" for n in range(10_000)) if id_code(text, BITS) == id_code("known-0", BITS))
    with closing(OwnIds(empty, tmp_path / "ids")) as ids:
        assert ids.remember(users(first))["user_id", first] == id_code("known-0", BITS)
    run = published(tmp_path / "new", 1)
    with closing(OwnIds(run, tmp_path / "ids")) as ids:
        assert ids.find("user_id", first) is None
        (code,) = ids.remember(users(first)).values()
        assert code not in (id_code("known-0", BITS), run.code("user_id", "known-0"))
        assert ids.find("user_id", first) == code


def test_a_forgotten_text_is_in_no_file(run: PublishedIds, tmp_path: Path) -> None:
    path = tmp_path / "ids"
    with closing(OwnIds(run, path)) as ids:
        ids.remember(users("to-be-forgotten", "another"))
        ids.forget("user_id", "to-be-forgotten")
        assert ids.find("user_id", "to-be-forgotten") is None
        assert ids.find("user_id", "another") is not None
        assert all(b"to-be-forgotten" not in file.read_bytes() for file in tmp_path.glob("ids*"))


def test_a_full_file_refuses_new_ids_and_knows_the_old_ones(run: PublishedIds, tmp_path: Path) -> None:
    with closing(OwnIds(run, tmp_path / "ids", bytes_max=1)) as ids:
        (code,) = ids.remember(users("small")).values()
        with pytest.raises(LogWriteError, match="Expected room for new ids"):
            ids.remember(users("small", *(f"{'x' * 250}{number}" for number in range(100))))
        assert [text for _, text, _ in ids.grown()] == ["small"], "all or none"
        assert ids.remember(users("small")) == {("user_id", "small"): code}


def test_the_file_of_another_program_is_refused_and_left_as_it_is(run: PublishedIds, tmp_path: Path) -> None:
    path = tmp_path / "ids"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(LogOpenError, match="Expected a file of ids of format 1"):
        OwnIds(run, path)
    assert path.read_bytes() == before
    path.write_bytes(b"no database" * 100)
    with pytest.raises(LogOpenError, match="Expected a file of ids, got file is not a database"):
        OwnIds(run, path)


def test_a_run_whose_ids_are_numbers_needs_no_file(tmp_path: Path) -> None:
    with closing(OwnIds(PublishedIds(), tmp_path / "ids")) as ids:
        assert ids.grown() == []
        ids.forget("user_id", "7")
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_and_after_the_end(run: PublishedIds) -> None:
    ids = OwnIds(run)
    (code,) = ids.remember(users("new")).values()
    assert ids.find("user_id", "new") == code
    ids.close()
    ids.close()
    with pytest.raises(LogOpenError, match="a closed one"):
        ids.find("user_id", "new")
    with pytest.raises(LogOpenError, match="a closed one"):
        ids.remember(users("newer"))
