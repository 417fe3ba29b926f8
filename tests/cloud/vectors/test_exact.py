import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, AttributeFilter, Attributes

CODES = st.integers(0, 3)
SETS = st.lists(CODES, max_size=3).map(tuple)
AGES = st.sampled_from([AGE_UNKNOWN, 0, 10, 20])
WHERES = st.builds(
    AttributeFilter,
    categories=st.none() | SETS,
    categories_not=SETS,
    authors=st.none() | SETS,
    authors_not=SETS,
    created_from_ms=st.none() | AGES,
)
SPARSE = st.integers(0, 40) | st.sampled_from([10**9, 10**18])
ROWS = st.lists(st.tuples(SPARSE, st.lists(st.integers(-1, 1), min_size=3, max_size=3), CODES, CODES, AGES), max_size=30)


class ExactIsBruteForce(RuleBasedStateMachine):
    """Whole numbers make ties, the case in which a partition alone would pick at random."""

    def __init__(self) -> None:
        super().__init__()
        self.index = ExactIndex(masks_max=3)
        self.rows: dict[int, tuple[list[int], int, int, int]] = {}

    @rule(rows=ROWS)
    def upsert(self, rows: list[tuple[int, list[int], int, int, int]]) -> None:
        ids, vectors, author, category, created = zip(*rows, strict=True) if rows else ((), (), (), (), ())
        columns = Attributes(np.array(author, np.int64), np.array(category, np.int32), np.array(created, np.int64))
        self.index.upsert(np.array(ids, np.int64), np.array(vectors, np.float16).reshape(-1, 3), columns)
        self.rows.update({i: (vector, a, c, t) for i, vector, a, c, t in rows})

    @rule(ids=st.lists(SPARSE, max_size=20))
    def delete(self, ids: list[int]) -> None:
        self.index.delete(np.array(ids, np.int64))
        for i in ids:
            self.rows.pop(i, None)

    @rule(
        query=st.lists(st.integers(-1, 1), min_size=3, max_size=3),
        k=st.integers(0, 50),
        where=WHERES,
        exclude=st.lists(SPARSE, max_size=30),
    )
    def search(self, query: list[int], k: int, where: AttributeFilter, exclude: list[int]) -> None:
        def passes(author: int, category: int, created: int) -> bool:
            return (
                (where.categories is None or category in where.categories)
                and category not in where.categories_not
                and (where.authors is None or author in where.authors)
                and author not in where.authors_not
                and (where.created_from_ms is None or (created != AGE_UNKNOWN and created >= where.created_from_ms))
            )

        scores = {
            i: sum(x * y for x, y in zip(vector, query, strict=True))
            for i, (vector, *known) in self.rows.items()
            if i not in exclude and passes(*known)
        }
        expected = sorted(scores, key=lambda i: (-scores[i], i))[:k]
        found = self.index.search(np.array(query, np.float32), k, where=where, exclude=np.array(exclude, np.int64))
        assert found.ids.tolist() == expected
        assert found.scores.tolist() == [scores[i] for i in expected]

    @invariant()
    def as_many(self) -> None:
        assert len(self.index) == len(self.rows)


TestExactIsBruteForce = ExactIsBruteForce.TestCase
TestExactIsBruteForce.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(wanted=st.lists(st.integers(0, 60), min_size=17, max_size=40).map(tuple), seed=st.integers(0, 99))
def test_a_long_list_of_codes_is_looked_up_like_a_short_one(wanted: tuple[int, ...], seed: int) -> None:
    category = np.random.default_rng(seed).integers(0, 70, 50).astype(np.int32)
    known = Attributes.unknown(50)._replace(category=category)
    expected = [code in wanted for code in category.tolist()]
    assert AttributeFilter(categories=wanted).passes(known).tolist() == expected


def test_ids_over_an_array_are_its_positions() -> None:
    assert ExactIndex.over(np.eye(3, dtype=np.float16)).search(np.array([0, 1, 2], np.float32), 2).ids.tolist() == [2, 1]
