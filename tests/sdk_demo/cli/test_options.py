from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import DataSource, parse_date, parse_list, parse_source

ALLOWED = ("onnx", "tflite", "coreml")


def test_a_source_is_the_world_a_data_file_or_a_log(tmp_path: Path) -> None:
    assert parse_source("world") == DataSource("world")
    assert parse_source("data/my.toml") == DataSource("file", Path("data/my.toml"))
    assert parse_source(str(tmp_path)) == DataSource("log", tmp_path)


@pytest.mark.parametrize("text", ["", "worlds", "world:", "kuairand", "kuairand:data", "my.csv", " world"])
def test_any_other_source_says_what_to_write(text: str) -> None:
    with pytest.raises(
        OptionError, match=r"--data: expected `world`, a data file `FILE.toml`, or the folder of a log"
    ) as caught:
        parse_source(text)
    assert caught.value.got == text


@given(st.lists(st.sampled_from(ALLOWED), min_size=1), st.sampled_from(["", " "]))
def test_a_list_keeps_the_order_and_drops_repeats(names: list[str], space: str) -> None:
    parsed = parse_list(f",{space}".join(names), ALLOWED, "--formats")
    assert list(parsed) == sorted(set(names), key=names.index)


@pytest.mark.parametrize("text", ["", "onnx,", ",onnx", "onnx;tflite", "ONNX", "onnx,torchscript"])
def test_a_list_takes_nothing_but_its_values(text: str) -> None:
    with pytest.raises(OptionError, match="--formats: expected a comma list of onnx, tflite, coreml, got"):
        parse_list(text, ALLOWED, "--formats")


@given(st.dates())
def test_a_date_is_read_back(day: date) -> None:
    assert parse_date(day.isoformat(), "--test-from") == day


@pytest.mark.parametrize("text", ["", "yesterday", "2022-5-4", "04.05.2022", "2022-02-30"])
def test_any_other_date_says_what_to_write(text: str) -> None:
    with pytest.raises(OptionError, match="--test-from: expected a day as YYYY-MM-DD"):
        parse_date(text, "--test-from")
