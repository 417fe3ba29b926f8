import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.ranking.formula import Formula, FormulaError

NAMES = ("long_view", "like")
PXTR = np.array([[0.5, 0.1], [0.2, 0.9], [0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("long_view", [0.5, 0.2, 0.0]),
        ("1.0 * long_view + 3 * like", [0.8, 2.9, 0.0]),
        ("long_view + like + like", [0.7, 2.0, 0.0]),
        ("long_view - like * 2", [0.3, -1.6, 0.0]),
        ("-long_view", [-0.5, -0.2, 0.0]),
        ("(1 + long_view) ** 2 * like ** 0.5", [2.25 * 0.1**0.5, 1.44 * 0.9**0.5, 0.0]),
        ("max(long_view, like) / (1 + min(long_view, like))", [0.5 / 1.1, 0.9 / 1.2, 0.0]),
        ("log1p(long_view) + sqrt(like)", [np.log1p(0.5) + 0.1**0.5, np.log1p(0.2) + 0.9**0.5, 0.0]),
        ("7", [7, 7, 7]),
        ("log(like)", [np.log(0.1), np.log(0.9), -np.inf]),
        ("like / like", [1, 1, -np.inf]),  # what is no number comes last
    ],
)
def test_a_formula_is_what_it_says(text: str, expected: list[float]) -> None:
    got = Formula(text, NAMES)(PXTR)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.array(expected, np.float32), rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "", "like +", "share", "like.real", "like[0]", "__import__('os')", "open('x')", "lambda: 1", "like if like else 1",
        "'a'", "True", "1j", "like ** like", "9 ** 99", "log(like, 2)", "min(like)", "log(x=1)", "like @ like", "like // 2",
        "like < 1", "(like := 1)", "like, like", "x" * 3000, "(" * 500 + "like" + ")" * 500, "\0", "log",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FormulaError):
        Formula(text, NAMES)


def test_the_error_says_what_is_known() -> None:
    with pytest.raises(FormulaError, match=r"long_view, like; got `share`"):
        Formula("like + share", NAMES)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_score_or_be_refused(text: str) -> None:
    try:
        formula = Formula(text, NAMES)
    except FormulaError:
        return
    assert formula(PXTR).shape == (3,)
