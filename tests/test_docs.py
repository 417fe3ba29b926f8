"""The docs are executed: Python blocks run, and every `pocketrank …` and `make …` line is one that exists."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.training.recipe import read_recipe, with_recipe
from pocketrank.cloud.training.train import TrainConfig
from pocketrank.sdk_demo.cli.app import app
from pocketrank.sdk_demo.workflow import Flow

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, the line of its first code, and the code."""

    language: str
    line: int
    code: str


def blocks(text: str, *languages: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text in one of `languages`."""
    for found in _FENCE.finditer(text):
        if found["language"] in languages:
            line = text.count("\n", 0, found.start("code")) + 1
            yield Block(found["language"], line, textwrap.dedent(found["code"]))


def commands(text: str, program: str) -> Iterator[tuple[int, list[str]]]:
    """Line and arguments of each call of `program` in the shell blocks of a Markdown text, continued lines joined."""
    for block in blocks(text, "bash"):
        line = block.line
        for command in re.sub(r"\\\n\s*", lambda gap: " " + "\0" * gap[0].count("\n"), block.code).split("\n"):
            words = shlex.split(command.replace("\0", ""), comments=True)
            for part in _split(words):
                if part[:1] == [program]:
                    yield line, part[1:]
            line += 1 + command.count("\0")


def _split(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("&&", "||", ";", "|", "&"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


# These two need a server: tests/sdk_demo/test_signed_demo.py and tests/pages/test_own_cloud.py run their blocks.
@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("README.md", "own-cloud.md")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run in order in one namespace, each under its own line numbers."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page.read_text(), "python"):
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_is_what_it_says(page: Path, tmp_path: Path) -> None:
    """A workflow, a recipe, an excerpt of an example's data file, or else a pipeline file."""
    examples = [set(example.read_text().splitlines()) for example in (ROOT / "examples").glob("*.toml")]
    for i, block in enumerate(blocks(page.read_text(), "toml")):
        file = tmp_path / f"{i}.toml"
        file.write_text(block.code)
        if block.code.startswith("[[step]]"):
            Flow.open(file)
        elif block.code.startswith("[[part]]"):
            with_recipe(TrainConfig(), read_recipe(file))
        elif not any(set(block.code.splitlines()) <= example for example in examples):
            PipelineConfig.open(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    known: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for line, (name, *args) in commands(page.read_text(), "pocketrank"):
        assert name in known, f"{page.name}, line {line}: no command `{name}`"
        try:
            known[name].make_context(name, args)  # parses, and runs nothing
        except TyperException as error:
            pytest.fail(f"{page.name}, line {line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line, args in commands(page.read_text(), "make"):
        assert {arg for arg in args if "=" not in arg} <= targets, f"{page.name}, line {line}: make {' '.join(args)}"


def test_every_command_is_explained() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    group = get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"## {name}\n" in text, f"docs/cli.md has no section for `pocketrank {name}`"
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in [flag for flag in parameter.opts if flag.startswith("--") and flag != "--help"]:
                assert f"`{option}" in section, f"docs/cli.md does not explain `pocketrank {name} {option}`"


def test_the_reader_finds_blocks_and_commands() -> None:
    text = "\n".join(
        ["A", "```python", "x = 1", "```", "```bash", "make demo && pocketrank a \\", "  --b 1  # why", "pocketrank c", "```"]
    )
    assert list(blocks(text, "python")) == [Block("python", 3, "x = 1\n")]
    assert list(commands(text, "pocketrank")) == [(6, ["a", "--b", "1"]), (8, ["c"])]
    assert list(commands(text, "make")) == [(6, ["demo"])]


def test_every_line_of_the_threat_model_is_held_by_tests() -> None:
    known = {name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    _, _, threats = (ROOT / "docs" / "security.md").read_text().partition("## Without a token")
    rows = [line for line in threats.splitlines() if line.startswith("| ") and not line.endswith("| tests |")]
    named = [set(re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])) for row in rows]
    assert len(rows) > 35
    assert all(named), "a line names no test"
    assert set.union(*named) <= known
