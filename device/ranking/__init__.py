"""Ranking on the device: the order of a bundle's models, within the time that a swipe has.

`ranker` orders candidates with the models, `tiers` selects what this device can run in time, `watchdog` keeps a swipe from
waiting for a slow run. Code belongs here if it runs models or decides how they are run; what they read and what their outputs
mean belongs to `pocketrank.device.model`.
"""
