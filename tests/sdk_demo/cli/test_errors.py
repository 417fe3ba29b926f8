import pytest

from pocketrank.device.contract import BlockError
from pocketrank.sdk_demo.cli.errors import OptionError, exit_on_domain_error, is_domain_error


class _DerivedError(BlockError):
    """Defined outside our packages, but one of their errors."""


@pytest.mark.parametrize(
    "error", [OptionError("--data", "x", "y"), BlockError("$.a", "x", "y"), _DerivedError("$.a", "x", "y")]
)
def test_an_error_of_ours_ends_in_one_line_and_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_domain_error():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_domain_error():
        raise OptionError("--world", "a table\n  with rates", "nothing")
    assert capsys.readouterr().err == "error: --world: expected a table with rates, got `nothing`\n"


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), FileNotFoundError("x"), ImportError("x")])
def test_any_other_error_passes(error: Exception) -> None:
    assert not is_domain_error(error)
    with pytest.raises(type(error)) as caught, exit_on_domain_error():
        raise error
    assert caught.value is error
