"""Rankings by user, of which only the latest and those that are not too old are kept."""

import numpy as np
import pytest

from pocketrank.cloud.pipeline.cached import CacheConfig, RankingCache
from pocketrank.cloud.pipeline.candidates import CandidateSet


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ranking(first: int, n: int = 3) -> CandidateSet:
    item = np.arange(first, first + n)
    return CandidateSet(item, np.ones((n, 2), np.float32), -item.astype(np.float32))


def first(cache: RankingCache, user: int, experiment: str | None = None) -> int | None:
    found = cache.get((user, experiment))
    return None if found is None else int(found.item[0])


def test_a_ranking_expires_after_its_ttl(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(ttl_s=60.0), clock)
    cache.keep((1, None), ranking(5))
    clock.now += 60.0
    assert first(cache, 1) == 5
    clock.now += 0.1
    assert first(cache, 1) is None
    cache.keep((1, None), ranking(7))
    assert first(cache, 1) == 7


def test_reading_a_ranking_does_not_prolong_its_ttl(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(ttl_s=60.0), clock)
    cache.keep((1, None), ranking(5))
    clock.now += 59.0
    assert first(cache, 1) == 5
    clock.now += 2.0
    assert first(cache, 1) is None


def test_a_newer_ranking_replaces_the_last_and_starts_its_ttl_again(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(ttl_s=60.0), clock)
    cache.keep((1, None), ranking(5))
    clock.now += 50.0
    cache.keep((1, None), ranking(6))
    clock.now += 50.0
    assert first(cache, 1) == 6


def test_the_ranking_that_was_used_longest_ago_is_evicted(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(users=3), clock)
    for user in (1, 2, 3):
        cache.keep((user, None), ranking(user))
    assert first(cache, 1) == 1
    cache.keep((2, None), ranking(20))
    cache.keep((4, None), ranking(4))
    assert [first(cache, user) for user in (1, 2, 3, 4)] == [1, 20, None, 4]


def test_users_and_experiments_have_rankings_of_their_own(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(), clock)
    cache.keep((1, None), ranking(1))
    cache.keep((1, "a"), ranking(2))
    assert [first(cache, 1), first(cache, 1, "a"), first(cache, 1, "b"), first(cache, 2)] == [1, 2, None, None]


def test_the_best_candidates_are_kept_in_arrays_of_their_own(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(candidates=4), clock)
    whole = ranking(10, n=50)
    cache.keep((1, None), whole)
    found = cache.get((1, None))
    assert found is not None
    assert found.item.tolist() == [10, 11, 12, 13]
    assert found.pxtr is not None
    assert found.score is not None
    for column in (found.item, found.pxtr, found.score):
        assert len(column) == 4
        assert column.base is None, "a view would keep the memory of the whole ranking"


def test_a_cache_for_no_users_keeps_nothing(clock: Clock) -> None:
    cache = RankingCache(CacheConfig(users=0), clock)
    cache.keep((1, None), ranking(1))
    assert first(cache, 1) is None


@pytest.mark.parametrize("wrong", [{"users": -1}, {"candidates": 0}, {"ttl_s": 0.0}, {"ttl_s": float("nan")}])
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="users of 0 or more, candidates of 1 or more and ttl_s above 0"):
        CacheConfig(**wrong)  # type: ignore[arg-type]
    CacheConfig(users=0, candidates=1, ttl_s=1e-9)
