from pathlib import Path

import pytest

from pocketrank.cloud.pipeline.config import BudgetConfig, PageConfig, PipelineConfig, PipelineError, default_stages
from pocketrank.cloud.ranking.formula import Formula
from tests.cloud.serving.pages import pages
from tests.cloud.small_published import small_run


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.toml").write_text(text)
    return folder / "pipeline.toml"


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert PipelineConfig.open(write(tmp_path, "")) == PipelineConfig()


def test_the_default_stages_fuse_by_the_runs_weights() -> None:
    stages = {stage["use"]: stage for stage in default_stages({"a": 1.0, "b": 0.5, "c": -1e-05})}
    assert list(stages) == ["retrieve", "rank", "fuse", "spread"]
    fuse = stages["fuse"]
    assert fuse["formula"] == "1.0 * a + 0.5 * b + -1e-05 * c"
    Formula(fuse["formula"], ("a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[page]\nsize_max = 'x'", "$.page.size_max", "Expected `int`, got `str`"),
        ("[page]\nsize_max = 0", "$.page", "size_max >= 1"),
        ("[pgae]\nsize_max = 1", "$", "unknown field `pgae`"),
        ("[limits]\npage_s = 1", "$.limits", "unknown field `page_s`"),
        ("[limits]\npage_ms = -1", "$.limits", "limits above 0"),
        ("[filters]\nage_max_days = 0", "$.filters", "age_max_days above 0"),
        ("[cache]\ncandidates = 0", "$.cache", "candidates of 1 or more"),
        ("[index.items]\nkind = 'annoy'", "$.index[...].kind", "Invalid enum value"),
        ("[[split]]\nfolder = 'x'", "$.split[0]", "field `"),
        ("stage = 1", "$.stage", "Expected `array`"),
        ("[page\n", "$", "Expected TOML"),
        ("[page]\n[page]\n", "$", "Expected TOML"),
        ("\xff\x00", "$", "Expected TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, where: str, what: str) -> None:
    file = write(tmp_path, text)
    if not text.isascii():
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(PipelineError) as caught:
        PipelineConfig.open(file)
    assert caught.value.path == where
    assert what in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_begins_with_the_mark_of_its_encoding_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.toml"
    file.write_bytes(b"\xef\xbb\xbf[page]\r\nsize_max = 7\r\n")
    assert PipelineConfig.open(file).page.size_max == 7


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="No such file"):
        PipelineConfig.open(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[[stage]]\ncandidates = 3", "$.stage[0].use", "Expected the name of a stage, got None"),
        ("[[stage]]\nuse = 'retreive'", "$.stage[0].use", "Expected one of retrieve, rank, fuse, spread, explore or a dotted"),
        ("[[stage]]\nuse = 'no.such.Stage'", "$.stage[0].use", "No module named 'no'"),
        (
            "[[stage]]\nuse = 'json.JSONDecoder'",
            "$.stage[0].use",
            "Expected a subclass of pocketrank.cloud.pipeline.stage.Stage",
        ),
        ("[[stage]]\nuse = 'json.dumps'", "$.stage[0].use", "Expected a subclass of"),
        ("[[stage]]\nuse = 'broken.Stage'", "$.stage[0].use", "ZeroDivisionError"),
        ("[[stage]]\nuse = 'retrieve'\ncandidates = '9'", "$.stage[0].candidates", "Expected `int`, got `str`"),
        ("[[stage]]\nuse = 'retrieve'\ncandidate = 9", "$.stage[0]", "unknown field `candidate`"),
        ("[[stage]]\nuse = 'retrieve'\ncandidates = 0", "$.stage[0]", "candidates of 1 or more"),
        ("[[stage]]\nuse = 'retrieve'\nchannel = [{use='new'}]", "$.stage[0].channel[0].use", "Expected one of two_tower"),
        ("[[stage]]\nuse = 'retrieve'\nchannel = [{use='fresh', quota=-1}]", "$.stage[0].channel[0]", "quotas of 0 or more"),
        (
            "[[stage]]\nuse = 'retrieve'\nchannel = [{use='two_tower', index='videos'}]",
            "$.stage[0].channel[0]",
            "Expected the name of an index (items), got videos",
        ),
        ("[[stage]]\nuse = 'retrieve'\n[[stage]]\nuse='fuse'\nformula='share'", "$.stage[1]", "got `share`"),
        ("[[stage]]\nuse = 'spread'\nmax_per_category = 0", "$.stage[0]", "max_per_category of 1 or more"),
        ("[filters]\nremoved = 'gone.txt'", "$.filters.removed", "No such file"),
        ("[filters]\nremoved = 'pipeline.toml'", "$.filters.removed", "Expected item ids, one per line"),
    ],
)
def test_a_wrong_stage_is_refused_before_anything_is_served(tmp_path: Path, text: str, where: str, what: str) -> None:
    run = small_run(tmp_path / "run")
    (run.folder / "broken.py").write_text("1 / 0\n")
    config = PipelineConfig.open(write(run.folder, text))
    with pytest.raises(PipelineError) as caught, pages(run.folder, tmp_path / "feedback.db", config):
        pass
    assert caught.value.path == where
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (PageConfig, {"size_max": 0}),
        (PageConfig, {"ttl_ms": -1}),
        *((BudgetConfig, {name: 0}) for name in ("page_ms", "queue_ms", "store_ms", "body_max", "body_s")),
        (BudgetConfig, {"page_ms": float("nan")}),
    ],
)
def test_a_limit_that_leaves_nothing_is_refused(config: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        config(**wrong)
    PageConfig(size_max=1, ttl_ms=0)
    BudgetConfig(page_ms=1e-9, queue_ms=1e-9, store_ms=1e-9, body_max=1, body_s=1e-9)
