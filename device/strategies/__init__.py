"""Strategies of an app that change the model's order: rules that hold by priority, and preferences that shift scores.

>>> arranger = Arranger([KeepBuffered(), Pin(7, position=2), AdSlots(4, 6, every=8), MinGap("author", 3), Freshness(2.0)])
>>> [f"{c.winner} over {c.loser}" for c in arranger.conflicts][:2]
['KeepBuffered() over Pin(7, 2)', 'KeepBuffered() over AdSlots(4, 6, 8, ad, None)']
>>> slate = arranger.start()
"""

from pocketrank.device.strategies.ads import *
from pocketrank.device.strategies.arranger import *
from pocketrank.device.strategies.base import *
from pocketrank.device.strategies.buffer import *
from pocketrank.device.strategies.diversity import *
from pocketrank.device.strategies.facts import *
from pocketrank.device.strategies.freshness import *
from pocketrank.device.strategies.pins import *
from pocketrank.device.strategies.slate import *
from pocketrank.device.strategies.spacing import *
