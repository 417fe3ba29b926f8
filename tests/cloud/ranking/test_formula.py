import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.ranking.formula import Formula, FormulaError

NAMES = ("long_view", "like")
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
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
        ("2 ** -1 * long_view * (3 - 1)", [0.5, 0.2, 0.0]),
        ("log(like)", [np.log(0.1), np.log(0.9), LOWEST]),
        ("like / like", [1, 1, LOWEST]),  # NaN comes last
        ("1 / like", [10, 1 / 0.9, HIGHEST]),
        ("like ** -1", [10, 1 / 0.9, HIGHEST]),
        ("-1 / like", [-10, -1 / 0.9, LOWEST]),
        ("exp(200 * like)", [np.exp(20), HIGHEST, 1]),
        ("sqrt(long_view - 0.3)", [0.2**0.5, LOWEST, LOWEST]),
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
        "like ** 17", "like ** -17", "like ** 10 ** 16", "like ** " + "9" * 400, "+".join(["like"] * 400), "-" * 1900 + "like",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FormulaError):
        Formula(text, NAMES)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("1/0", "1/0"),
        ("like + 3 * (1 / 0)", "1 / 0"),
        ("1 / (1 / 0) + like", "1 / 0"),
        ("0/0 * like", "0/0"),
        ("0 ** -1", "0 ** -1"),
        ("10**16**16", "16**16"),
        ("like + exp(1000)", "exp(1000)"),
        ("log(0)", "log(0)"),
        ("sqrt(1 - 2)", "sqrt(1 - 2)"),
        ("(1 - 2) ** 0.5", "(1 - 2) ** 0.5"),
        ("min(0 / 0, like)", "0 / 0"),
        ("1e39 * like", "1e39"),
        ("1e999", "1e999"),
        ("9" * 400 + " * like", "9" * 400),
        ("9e37 * like + 9e37 * long_view", "9e37 * like + 9e37 * long_view"),
        ("sqrt(like - 2)", "sqrt(like - 2)"),
        ("1 / (like - like)", "1 / (like - like)"),
        ("like * 3e38 * 3e38 * 3e38 * 3e38 * 3e38", "like * 3e38 * 3e38 * 3e38 * 3e38 * 3e38"),
    ],
)
def test_what_is_finite_for_nobody_is_refused_and_the_part_is_named(text: str, source: str) -> None:
    with pytest.raises(FormulaError, match=f"got `{re.escape(source)}`"):
        Formula(text, NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("like + share", r"long_view, like; got `share`$"),
        ("1 / 0", r"a constant with a value of at most 3.4e\+38; got `1 / 0`, which is inf$"),
        ("like ** 17", r"a constant of at most 16 as exponent; got `17`$"),
        ("2 + min(like)", r"Expected 2 arguments of min, got 1 - at `min\(like\)`$"),
    ],
)
def test_the_error_says_what_was_expected_and_what_came(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        Formula(text, NAMES)


def test_a_task_may_be_named_like_a_function_which_it_then_hides() -> None:
    assert Formula("2 * max", ("max", "like"))(PXTR).tolist() == [1.0, np.float32(0.4), 0.0]
    with pytest.raises(FormulaError, match=r"got `max\(like, 1\)`"):
        Formula("max(like, 1)", ("max", "like"))


@pytest.mark.parametrize(
    "text", ["1.0 * long_view + 3 * like", "-1 * like + long_view", "like", "0.1 * like + 0.2 * long_view"]
)
def test_a_weighted_sum_is_one_product_bit_for_bit(text: str) -> None:
    rng = np.random.default_rng(0)
    pxtr = rng.random((500, 2), np.float32)
    weights = {"1.0 * long_view + 3 * like": (1, 3), "-1 * like + long_view": (1, -1), "like": (0, 1)}.get(text, (0.2, 0.1))
    assert Formula(text, NAMES)(pxtr).tobytes() == (pxtr @ np.array(weights, np.float32)).tobytes()


@given(st.text(max_size=60))
def test_no_text_does_anything_but_score_or_be_refused(text: str) -> None:
    try:
        formula = Formula(text, NAMES)
    except FormulaError:
        return
    assert formula(PXTR).shape == (3,)


NUMBERS = st.sampled_from(["0", "1", "2", "0.5", "16", "1000", "1e-38", "1e38", "1e300", "1e999", "9" * 400]) | st.floats(
    min_value=0, allow_nan=False, allow_infinity=False
).map(repr)
FORMULAS = st.recursive(
    st.sampled_from(NAMES) | NUMBERS,
    lambda part: (
        st.builds("({} {} {})".format, part, st.sampled_from(["+", "-", "*", "/"]), part)
        | st.builds("({} ** {})".format, part, NUMBERS | st.sampled_from(["-1", "-0.5", "-16", "(1 / 2)", "(1 / 0)"]))
        | st.builds("-{}".format, part)
        | st.builds("{}({})".format, st.sampled_from(["log", "log1p", "exp", "sqrt"]), part)
        | st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), part, part)
    ),
    max_leaves=12,
)
PROBABILITIES = st.lists(
    st.tuples(*[st.sampled_from([0.0, 1.0, 1e-45, 0.5]) | st.floats(0, 1, width=32)] * len(NAMES)), min_size=1, max_size=8
)


@settings(max_examples=300, deadline=None)
@given(FORMULAS, PROBABILITIES)
def test_a_formula_that_is_not_refused_has_finite_scores_for_all_probabilities(
    text: str, probabilities: list[tuple[float, ...]]
) -> None:
    try:
        formula = Formula(text, NAMES)
    except FormulaError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = formula(np.array(probabilities, np.float32))
    assert scores.dtype == np.float32
    assert scores.shape == (len(probabilities),)
    assert np.isfinite(scores).all()
