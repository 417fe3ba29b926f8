from hypothesis import given
from hypothesis import strategies as st

from pocketrank.sdk_demo.emulator.fleet import plan


@given(users=st.integers(1, 200), sessions=st.integers(1, 1000), seed=st.integers(0, 9))
def test_nobody_comes_again_before_everybody_came(users: int, sessions: int, seed: int) -> None:
    visits = plan(users, sessions, seed)
    assert sum(visit.sessions for visit in visits) == sessions
    assert len({visit.user_id for visit in visits}) == len(visits) == min(users, sessions)
    assert all(1 <= visit.user_id <= users for visit in visits)
    assert max(visit.sessions for visit in visits) - min(visit.sessions for visit in visits) <= 1


def test_the_seed_decides_who_comes() -> None:
    assert plan(50, 20, 1) == plan(50, 20, 1)
    assert plan(50, 20, 1) != plan(50, 20, 2)
