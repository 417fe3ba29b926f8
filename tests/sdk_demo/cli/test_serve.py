from pathlib import Path

import pytest

from pocketrank.sdk_demo.cli import main


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_a_certificate_without_its_key_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--run", str(tmp_path), option, str(tmp_path / "one.pem")])
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert told.startswith("error: Expected the certificate and its key, got a ")
    assert str(tmp_path / "one.pem") in told
