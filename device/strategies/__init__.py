"""Strategies of an app that change the model's order: rules that hold by priority, and preferences that shift scores.

>>> arranger = Arranger([KeepBuffered(), Pin(7, position=2), AdSlots(4, 6, every=8), MinGap("author", 3), Freshness(2.0)])
>>> [f"{c.winner} over {c.loser}" for c in arranger.conflicts][:2]
['KeepBuffered() over Pin(7, 2)', 'KeepBuffered() over AdSlots(4, 6, 8, ad, None)']
>>> slate = arranger.start()
"""

from __future__ import annotations

from pocketrank.device.strategies.ads import AdSlots
from pocketrank.device.strategies.arranger import Arranger, Conflict
from pocketrank.device.strategies.base import Bonus, Clash, Preference, Rule, Strategy, Test
from pocketrank.device.strategies.buffer import KeepBuffered
from pocketrank.device.strategies.diversity import DPP, MMR
from pocketrank.device.strategies.facts import Facts, Value
from pocketrank.device.strategies.freshness import Freshness
from pocketrank.device.strategies.pins import PagePins, Pin
from pocketrank.device.strategies.slate import Slate, SlateDecision, StrategyCounters
from pocketrank.device.strategies.spacing import Cap, MinGap

__all__ = [
    "AdSlots",
    "Arranger",
    "Bonus",
    "Cap",
    "Clash",
    "Conflict",
    "DPP",
    "SlateDecision",
    "Facts",
    "Freshness",
    "KeepBuffered",
    "MMR",
    "MinGap",
    "PagePins",
    "Pin",
    "Preference",
    "Rule",
    "Slate",
    "Strategy",
    "StrategyCounters",
    "Test",
    "Value",
]
