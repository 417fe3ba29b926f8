"""Counters of a session, so that no fallback is silent."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pocketrank.device.ranking.watchdog import WatchdogCounters

__all__ = ["Counters", "telemetry_names"]


@dataclass(slots=True)
class Counters:
    """Totals of one session, from 0."""

    pages: int = 0
    """pages taken"""
    pages_missing: int = 0
    """page requests of `refill` that failed; what was held stays"""
    pages_refused: int = 0
    """pages whose item ids could not be read, or that answer another request; what was held stays"""
    pages_degraded: int = 0
    """pages that the cloud made with fewer of its parts than usual (`Page.degraded`)"""
    pages_empty: int = 0
    """pages whose candidates had all been shown before, or that had none; what was held stays"""
    features_bad: int = 0
    """pages whose features could not be read: cloud order"""
    columns_missing: int = 0
    """features that a page did not carry, summed over pages: their defaults are used"""
    split_mismatch: int = 0
    """pages of another split version than the bundle's: self-contained form"""
    vectors_absent: int = 0
    """pages without vectors: self-contained form"""
    vectors_bad: int = 0
    """pages whose vectors could not be read or have another width: self-contained form"""
    no_model: int = 0
    """pages held in cloud order because there is no model (`SessionConfig.expects_model`), or none for the page's form"""
    duplicates: int = 0
    """candidates dropped because the page has the same item further up"""
    already_shown: int = 0
    """candidates dropped because the session had shown the item"""
    reranks: int = 0
    """orders made by the model"""
    model_failed: int = 0
    """model runs that failed: cloud order"""
    scores_bad: int = 0
    """model runs with a score that is not a finite number: cloud order"""
    events: int = 0
    """feedback events accepted for upload"""
    events_bad: int = 0
    """events that the contract does not allow: dropped"""
    events_duplicate: int = 0
    """events whose id is already known: dropped"""
    events_refused: int = 0
    """events that the cloud refused, each by itself: dropped"""
    events_unknown_item: int = 0
    """events of items that the session does not know: uploaded, not shown to the model"""
    events_late: int = 0
    """events older than every event that the model remembers: uploaded, not shown to the model"""
    shown_elsewhere: int = 0
    """items that count as shown because feedback for them arrived without `next`"""


def telemetry_names() -> frozenset[str]:
    """Return the names of everything that the SDK counts and times in a session, for a cloud that limits other names."""
    from pocketrank.device.strategies.slate import StrategyCounters  # not every app has strategies

    counted = {field.name for kind in (Counters, WatchdogCounters) for field in fields(kind)}
    return frozenset({*counted, *StrategyCounters().sums(), "events_dropped", "reports_dropped", "next", "rerank"})
