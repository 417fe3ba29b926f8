"""What a user did with an item, and what of it may leave the device.

`impression` makes events from what a player's listeners report; `privacy` removes what may not leave. A module belongs here
when it makes or changes a `FeedbackEvent`. How events wait and travel is in `pocketrank.device.offline` and
`pocketrank.device.network`.
"""
