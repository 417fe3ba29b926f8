import io

from rich.console import Console

from pocketrank.sdk_demo.cli.emulation import print_emulation
from pocketrank.sdk_demo.emulator.figures import figures
from pocketrank.sdk_demo.emulator.records import SessionRecord


def _text(*policies: str) -> str:
    records = [
        SessionRecord(policy, user, effective=[True] * (place + user), rerank_ms=[1.0] if policy == "on_device" else [])
        for place, policy in enumerate(policies)
        for user in (1, 2)
    ]
    records[0].pages_missing = 7
    report = figures(records, policies, seed=0) | {"sessions": 2}
    console = Console(file=io.StringIO(), width=140, color_system=None)
    print_emulation(console, report, report["latency_ms"])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_reader_sees_the_table_the_share_and_the_fallbacks() -> None:
    text = _text("cloud_order", "on_device", "oracle")
    assert "simulated users, per session (2 for each policy)" in text
    assert "1.00..2.00" in text
    assert "on_device over cloud_order, effective views: +1.00 (95 % interval +1.00 to +1.00)" in text
    assert "share of the oracle's uplift captured on the device: 0.50 (95 % interval 0.50 to 0.50)" in text
    assert "reordering at a swipe: p50 1.00 ms, p99 1.00 ms" in text
    assert "fallbacks, cloud_order: pages_missing 7" in text
    assert "page over HTTP" not in text


def test_one_policy_alone_is_compared_with_nothing() -> None:
    text = _text("cloud_order")
    assert "over cloud_order" not in text
    assert "share" not in text
