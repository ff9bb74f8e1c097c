from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.archive.expressions import (
    Constant,
    Expression,
    Operation,
    Symbol,
    evaluate,
    parse_expression,
)
from erless.errors import ArtifactError

S12 = Symbol("s12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s12", S12),
        ("Symbol('s12', positive=True, integer=True)", S12),
        ("2*s12", Operation("multiply", (Constant(2), S12))),
        ("Mul(Integer(2), Symbol('s12', integer=True))", Operation("multiply", (Constant(2), S12))),
        ("Max(1, s12)", Operation("maximum", (Constant(1), S12))),
        ("FloorDiv(s12, 2)", Operation("floor_divide", (S12, Constant(2)))),
        (
            "(s12 + 1) // 2",
            Operation("floor_divide", (Operation("add", (S12, Constant(1))), Constant(2))),
        ),
        ("s12**2", Operation("power", (S12, Constant(2)))),
        ("Eq(s12, 3)", Operation("equal", (S12, Constant(3)))),
        ("s12 <= 4096", Operation("less_equal", (S12, Constant(4096)))),
        ("Integer(-1)", Constant(-1)),
        ("Float('-0.5', precision=53)", Constant(-0.5)),
    ],
)  # as sympy prints and as it rebuilds
def test_what_torch_writes_is_read(text: str, expected: Expression) -> None:
    assert parse_expression(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "exec('1')",
        "__import__('os')",
        "().__class__",
        "s0.size",
        "s0[0]",
        "lambda: 0",
        "9**9**9**9",
        "2**99999999",
        "9" * 31,
        "1e999",
        "2^3",
        "s0 if s1 else s2",
        "f(s0)",
        "(s0",
        "s0)",
        "s0,",
        "Symbol()",
        "Symbol(s0())",
        "Symbol('s0', __import__('os'))",
        "'s0'",
        "s0 s1",
        "é",
        "s0\x00",
        "((" * 200,
        "1+" * 3000 + "1",
        "__class__",
        "Pow(s0, s1)",
        "Integer('x')",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        parse_expression(text)


@given(st.text(alphabet="s01 ()+-*/%,<>=.'MaxinPowSymbol_e", max_size=80))
def test_every_text_is_an_expression_or_refused(text: str) -> None:
    try:
        parse_expression(text)
    except ArtifactError as error:
        assert len(str(error)) < 400


@given(
    st.recursive(
        st.integers(0, 99).map(str) | st.sampled_from(["s0", "s1"]),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        max_leaves=8,
    ),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_arithmetic_is_pythons(text: str, first: int, second: int) -> None:
    expected = eval(text, {"__builtins__": {}}, {"s0": first, "s1": second})  # noqa: S307
    assert evaluate(parse_expression(text), {"s0": first, "s1": second}) == expected


def test_values_stay_within_64_bits() -> None:
    product = "*".join(["s0"] * 8)
    with pytest.raises(ArtifactError, match="more than 64 bits"):
        evaluate(parse_expression(product), {"s0": 2**30})
    with pytest.raises(ArtifactError, match="divided by zero"):
        evaluate(parse_expression("1 // s0"), {"s0": 0})
    with pytest.raises(ArtifactError, match="not known"):
        evaluate(parse_expression("s9"), {})
