from pocketrank.sdk_demo.cli.emulate import ALL_POLICIES
from pocketrank.sdk_demo.cli.options import POLICIES
from pocketrank.sdk_demo.emulator import DEFAULT_POLICIES
from pocketrank.sdk_demo.emulator import POLICIES as KNOWN


def test_the_command_names_the_policies_that_there_are() -> None:
    """Twice, because the help must not import what emulates."""
    assert set(ALL_POLICIES) == set(KNOWN)
    assert POLICIES == DEFAULT_POLICIES
