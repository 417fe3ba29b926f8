import io

from rich.console import Console

from pocketrank.sdk_demo.cli.stages import stages


def _printed(*, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None)
    with stages(console) as report:
        for stage in ("loading", "training [x]"):
            for share in (0.0, 0.5, 1.0):
                report(stage, share)
    return text.getvalue()


def test_a_log_file_gets_a_line_for_each_stage() -> None:
    assert _printed(terminal=False) == "loading …\ntraining [x] …\n"


def test_a_terminal_gets_a_bar_for_each_stage() -> None:
    text = _printed(terminal=True)
    assert "loading" in text
    assert "training" in text
    assert "100 %" in text
