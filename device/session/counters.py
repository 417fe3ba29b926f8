"""What a session counts, so that a fallback is never silent."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Totals of one session, from 0."""

    pages: int = 0
    """pages taken"""
    pages_missing: int = 0
    """pages asked for by `refill` that did not come; what was held stays"""
    pages_refused: int = 0
    """pages whose item ids could not be read; what was held stays"""
    pages_degraded: int = 0
    """pages that the cloud made with less than it would (`Page.degraded`)"""
    pages_empty: int = 0
    """pages without a candidate that was not shown before; what was held stays"""
    features_bad: int = 0
    """pages whose features could not be read: cloud order"""
    columns_missing: int = 0
    """features, summed over pages, that a page did not carry: defaults"""
    split_mismatch: int = 0
    """pages of another split version than the bundle's: self-contained form"""
    vectors_absent: int = 0
    """pages without vectors: self-contained form"""
    vectors_bad: int = 0
    """pages whose vectors could not be read or have another width: self-contained form"""
    no_model: int = 0
    """pages for whose form the ranker has no model: cloud order"""
    duplicates: int = 0
    """candidates dropped because the page had the item before"""
    already_shown: int = 0
    """candidates dropped because the session had shown the item"""
    reranks: int = 0
    """orders that the model made"""
    model_failed: int = 0
    """runs that failed: cloud order"""
    scores_bad: int = 0
    """runs with a score that was no finite number: cloud order"""
    events: int = 0
    """feedback events accepted for upload"""
    events_bad: int = 0
    """events that the contract does not allow: dropped"""
    events_duplicate: int = 0
    """events whose id was known: dropped"""
    events_unknown_item: int = 0
    """events of items the session never had: uploaded, not shown to the model"""
    events_late: int = 0
    """events older than all that the model remembers: uploaded, not shown to the model"""
    shown_elsewhere: int = 0
    """items taken as shown because feedback for them came without `next`"""
