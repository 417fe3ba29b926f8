"""The parameters of the simulated world, one class for each section of its TOML file.

Unless a docstring names another source, a number is a choice of ours that shapes the simulated world, not a measurement. Values
marked *calibrated* are written by `python -m pocketrank.sdk_demo.world.calibrate` so that the rates under `[targets]` are met.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "ActionConfig",
    "CatalogueConfig",
    "ExitConfig",
    "SimulatedLogConfig",
    "PolicyConfig",
    "UserSessionConfig",
    "Section",
    "SignalConfig",
    "TargetConfig",
    "UserConfig",
    "UtilityConfig",
    "WatchConfig",
]

Rate = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
OpenRate = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Whole = Annotated[int, msgspec.Meta(ge=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, every key required, no others allowed."""


class CatalogueConfig(Section, frozen=True, kw_only=True):
    """The items."""

    items: Count
    """Number of items; ids are 1..items in order of upload."""
    topics: Annotated[int, msgspec.Meta(ge=2)]
    """Number of topics; an item's `category` is its topic's code, from 1."""
    vector_width: Annotated[int, msgspec.Meta(ge=2)]
    """Width d of the content vectors."""
    authors: Count
    """Number of authors; each has a home topic and a style."""
    author_tail: Positive
    """Pareto exponent of the number of items of an author; small means that a few authors upload most."""
    music_tracks: Count
    """Number of sound tracks; items of music topics draw from the first half, more often the popular ones."""
    music_topics: Whole
    """Topics (the first ones) for which sound matters."""
    long_topics: Whole
    """Topics (the last ones) whose items are long."""
    author_spread: NonNegative
    """Length of an author's style vector; a topic's centre has length 1."""
    item_spread: NonNegative
    """Length of an item's own deviation from topic and style."""
    author_quality: NonNegative
    """Standard deviation of quality between authors."""
    item_quality: NonNegative
    """Standard deviation of quality between items of one author."""
    duration_median_s: Positive
    """Median duration of ordinary items, seconds."""
    duration_sigma: NonNegative
    """Standard deviation of ln duration within a topic."""
    duration_topic_sigma: NonNegative
    """Standard deviation of a topic's mean ln duration."""
    duration_long_factor: Positive
    """Durations of long topics are multiplied by this."""
    duration_min_s: Positive
    """Shortest item, seconds."""
    duration_max_s: Positive
    """Longest item, seconds."""
    initial_share: Rate
    """Share of the items that is online when the log starts; the rest arrives evenly while it runs."""
    initial_days: Positive
    """The initial items were uploaded in this many days before the log."""


class UserConfig(Section, frozen=True, kw_only=True):
    """Long-term properties of the users."""

    count: Count
    """Number of users; ids are 1..count."""
    interests: Count
    """Topics that a user likes in the long run."""
    interest_concentration: Positive
    """Dirichlet concentration of the weights of those topics; small means one topic dominates."""
    taste_noise: NonNegative
    """Length of the part of the taste vector that no topic explains."""
    activity_sigma: NonNegative
    """Standard deviation of ln activity (sessions in the log)."""
    mood_bias: NonNegative
    """Standard deviation between users of the mean of each mood; within a session a mood has deviation 1."""
    attribute_noise: NonNegative
    """Noise in the attributes, relative to the taste that they reflect."""
    declared_share: Rate
    """Share of users who declare their strongest interest; the rest declare any topic."""
    wifi_share: Rate
    """Mean share of a user's sessions on wifi."""
    wifi_spread: NonNegative
    """Standard deviation of that share between users."""


class UserSessionConfig(Section, frozen=True, kw_only=True):
    """The hidden state of a session that does not depend on the items shown, and satiation."""

    taste_weight: NonNegative
    """Share of long-term taste (length 1) in the intent."""
    focus_weight: NonNegative
    """Share of the topic in focus (length 1) in the intent, which long-term taste does not reveal."""
    drift_weight: NonNegative
    """Length of the drifting deviation of the intent."""
    drift_memory: Rate
    """AR(1) coefficient of that deviation, per impression."""
    jump_rate: Rate
    """Probability per impression that the focus jumps."""
    stray_share: Rate
    """Share of focus choices that fall on any topic rather than on one of the user's interests."""
    mood_memory: Rate
    """AR(1) coefficient of the moods, per impression."""
    network_memory: Rate
    """AR(1) coefficient of network quality, per impression."""
    network_switch: Rate
    """Probability per impression that the carrier (wifi, cellular) is chosen again."""
    satiation_gain: NonNegative
    """Satiation that a long view adds to its topic; a shorter view adds less, in proportion to its watch time."""
    satiation_floor: Rate
    """Share of `satiation_gain` that a flick adds as well."""
    satiation_memory: Rate
    """Share of satiation left after one more impression."""
    gap_ms: Whole
    """Median time between two impressions, ms; shorter when the user scrolls fast."""
    max_impressions: Count
    """Largest number of impressions of a session."""


class UtilityConfig(Section, frozen=True, kw_only=True):
    """What makes an item worth watching now; one unit multiplies the median watch time by e."""

    match: float
    """Per unit of intent · item vector."""
    quality: float
    """Per unit of quality."""
    satiation: float
    """Lost per unit of satiation of the item's topic."""
    same_author: float
    """Lost when the previous item was by the same author."""
    similarity: float
    """Lost per unit of vector similarity with the previous item; dissimilar items gain."""
    sound: float
    """Per unit of sound mood on music topics; the same total is subtracted from the other topics."""
    patience: float
    """Per unit of patience and standard deviation of ln duration."""


class WatchConfig(Section, frozen=True, kw_only=True):
    """Watch time: ln seconds = location + scale * standard logistic noise, capped at the duration.

    The log-logistic distribution replaces the log-normal that is often used for watch times: it has the same shape, a slightly
    heavier tail, and a distribution function that is one sigmoid.
    """

    intercept: float
    """Location of an average item for an average user. Calibrated to `targets.effective_view`."""
    scale: Positive
    """Scale of the noise. Calibrated to `targets.long_view`."""
    duration: float
    """Location per standard deviation of ln duration."""
    impatience: float
    """Location lost per unit of impatience."""
    impatience_duration: float
    """Location lost per unit of impatience and standard deviation of ln duration."""
    buffering: float
    """Location lost per second of expected buffering."""
    effective_s: Positive
    """A view is effective from min(duration, this), seconds. KuaiRand's feed tab: is_click equals this on 97.5 % of rows."""
    long_s: Positive
    """A view is long from min(duration, this), seconds. KuaiRand's definition of long_view."""


class ActionConfig(Section, frozen=True, kw_only=True):
    """Explicit actions: probability given the view = sigmoid(intercept + slope * utility)."""

    like_intercept: float
    """Like, given an effective view. Calibrated."""
    like_slope: float
    """Per unit of utility."""
    follow_intercept: float
    """Follow, given a long view. Calibrated."""
    follow_slope: float
    """Per unit of utility."""
    dislike_intercept: float
    """Dislike, given a view that was not effective. Calibrated."""
    dislike_slope: float
    """Per unit of utility; negative."""


class ExitConfig(Section, frozen=True, kw_only=True):
    """Leaving: after each impression with probability sigmoid(hazard)."""

    intercept: float
    """Hazard of an average moment. Calibrated to `targets.session_impressions`."""
    satisfaction: float
    """Hazard lost per unit of running satisfaction."""
    satisfaction_rate: Rate
    """Weight of the newest impression in running satisfaction."""
    satisfaction_start: float
    """Running satisfaction at the start of a session."""
    effective_reward: float
    """Satisfaction from a view that was effective but not long; a view that was not effective adds none."""
    long_reward: float
    """Satisfaction from a long view."""
    impatience: float
    """Hazard per unit of impatience."""
    buffering: float
    """Hazard per second of expected buffering."""
    fatigue_count: float
    """Hazard per 10 impressions."""
    fatigue_minutes: float
    """Hazard per 10 minutes."""
    background_share: Rate
    """Share of exits that put the app into the background instead of closing it."""


class SignalConfig(Section, frozen=True, kw_only=True):
    """Device signals: noisy readings of the hidden moods."""

    volume_sound: float
    """Volume = sigmoid(this * sound mood + noise)."""
    volume_noise: NonNegative
    """Standard deviation of that noise, and of the noise of a volume change."""
    change_sound: float
    """Volume change per unit of utility on music topics (less elsewhere)."""
    change_threshold: NonNegative
    """Smaller changes do not happen."""
    mute_intercept: float
    """Muted with probability sigmoid(this + `mute_sound` * sound mood)."""
    mute_sound: float
    """See `mute_intercept`; negative."""
    landscape_intercept: float
    """Landscape with probability sigmoid(this + `landscape_patience` * patience + `landscape_duration` * ln duration)."""
    landscape_patience: float
    """See `landscape_intercept`."""
    landscape_duration: float
    """See `landscape_intercept`; per standard deviation."""
    fast_intercept: float
    """Played faster with probability sigmoid(this + `fast_impatience` * (impatience + ln duration deviation))."""
    fast_impatience: float
    """See `fast_intercept`."""
    faster_step: NonNegative
    """The logit of playing at twice the speed lies this far below that of 1.5 times."""
    pause_log_mean: float
    """ln of the mean number of pauses per 30 s watched (a geometric count)."""
    pause_patience: float
    """Added per unit of patience."""
    seek_log_mean: float
    """ln of the mean number of seeks per 30 s watched."""
    seek_impatience: float
    """Added per unit of impatience."""
    scroll_log: float
    """ln scroll speed (screens per second) of an average user."""
    scroll_impatience: float
    """Added per unit of impatience."""
    scroll_utility: float
    """Added per unit of utility; negative, because people flick past items that they do not like."""
    scroll_noise: NonNegative
    """Standard deviation of ln scroll speed."""
    buffering_log: float
    """ln of the expected buffering (s) of an average item on an average network."""
    buffering_network: float
    """Added per unit of network quality; negative."""
    wifi_gain: float
    """Network quality (deviation 1) gained on wifi."""
    buffering_duration: float
    """Added per standard deviation of ln duration."""
    buffering_max_s: NonNegative
    """Largest expected buffering, seconds."""
    buffering_noise: NonNegative
    """Standard deviation of ln measured / expected buffering."""
    buffering_threshold_ms: NonNegative
    """Shorter buffering is measured as 0."""
    battery_saver_share: Rate
    """Share of sessions in battery saver, which also raises impatience."""
    battery_saver_impatience: float
    """Impatience added in battery saver."""


class PolicyConfig(Section, frozen=True, kw_only=True):
    """The recommender that wrote the log: noisy scores of long-term taste and quality, and some exploration."""

    page_size: Count
    """Candidates on a page."""
    shown: Count
    """Items shown before the next page is requested."""
    taste: float
    """Weight of long-term taste · item vector."""
    quality: float
    """Weight of quality."""
    noise: NonNegative
    """Standard deviation of the noise in its scores, drawn for each page."""
    explore: Rate
    """Share of a page's slots filled with any unseen item."""


class SimulatedLogConfig(Section, frozen=True, kw_only=True):
    """Size and time of the log."""

    start_ms: Whole
    """First instant of the log, ms since the epoch, UTC."""
    days: Positive
    """Length of the log, days."""
    sessions_per_user: Positive
    """Mean number of sessions of a user in the log."""
    evening_share: Rate
    """Share of sessions around `evening_hour`; the rest falls evenly on the hours 8..24 UTC."""
    evening_hour: Annotated[float, msgspec.Meta(ge=0.0, le=24.0)]
    """Centre of the evening, hours UTC."""
    evening_spread: NonNegative
    """Standard deviation of evening sessions, hours."""


class TargetConfig(Section, frozen=True, kw_only=True):
    """Rates of the log that calibration aims at."""

    effective_view: OpenRate
    """KuaiRand's is_click."""
    long_view: OpenRate
    """KuaiRand's long_view; must be below `effective_view`."""
    like: OpenRate
    """KuaiRand's is_like."""
    follow: OpenRate
    """KuaiRand's is_follow."""
    dislike: OpenRate
    """A choice of ours in the order of KuaiRand's is_hate."""
    session_impressions: Annotated[float, msgspec.Meta(gt=1.0)]
    """Mean impressions of a session; a choice of ours."""
