"""Expressions of the epoch: exact values, and nothing but arithmetic."""

import math

import pytest

from utils.config.expressions import compress_time, parse_expression

# The published schedules, as Python computes them.
PUBLISHED = {
    "lambda epoch: pow(0.0001/0.001, 1/67) ** epoch": lambda epoch: pow(0.0001 / 0.001, 1 / 67) ** epoch,
    "lambda epoch: 0.955 ** epoch": lambda epoch: 0.955**epoch,
    "lambda epoch: 0.975 ** epoch": lambda epoch: 0.975**epoch,
    "lambda epoch: 0.98 ** epoch": lambda epoch: 0.98**epoch,
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_schedules_to_the_last_bit(text):
    schedule = parse_expression(text)
    assert [schedule(epoch) for epoch in range(200)] == [PUBLISHED[text](epoch) for epoch in range(200)]


@pytest.mark.parametrize(
    ("text", "epoch", "value"),
    [
        ("lambda e: 1 / (1 + 0.1 * e)", 4, 1 / (1 + 0.1 * 4)),
        ("0.1 ** (epoch // 30)", 65, 0.1**2),
        ("lambda epoch: 1 if epoch < 5 else 0.5", 4, 1),
        ("lambda epoch: 1 if 2 <= epoch < 5 else 0.5", 5, 0.5),
        ("lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / 200))", 50, 0.5 * (1 + math.cos(math.pi * 0.25))),
        ("lambda epoch: max(-epoch % 3, min(exp(1), sqrt(4)))", 7, 2.0),
        ("9007199254740993 * epoch", 1, 9007199254740992.0),  # in floats
    ],
)
def test_values(text, epoch, value):
    found = parse_expression(text)(epoch)
    assert found == value and isinstance(found, float)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("__import__('os').system('true')", "unknown name '__import__'"),
        ("lambda epoch: epoch if epoch < 9 else coss(epoch)", "unknown name 'coss'. Did you mean 'cos'?"),
        ("lambda epoch: step", "unknown name 'step'"),
        ("lambda epoch: epoch.__class__", "__attributes"),
        ("lambda epoch: math.__doc__", "__attributes"),
        ("lambda epoch: math.factorial(9)", "factorial"),
        ("lambda epoch: [epoch][0]", "List is not available"),
        ("lambda epoch: (lambda: 1)()", "Lambda"),
        ("lambda epoch: 'text'", "'text' is not a number"),
        ("lambda epoch: f'{epoch}'", "expected a finite number"),
        ("lambda epoch: True", "True is not a number"),
        ("lambda epoch: max(key=epoch)", "cannot be computed for epoch 0"),
        ("lambda epoch:", "is not an expression such as"),
        ("import os", "is not an expression such as"),
        ("(" * 300 + ")" * 10, "is not an expression such as"),
        ("x" * 501, "longer than 500 characters"),
        ("lambda a, b: 1", "exactly one argument"),
        ("lambda *a: 1", "exactly one argument"),
        ("lambda epoch=1: epoch", "exactly one argument"),
        ("lambda: 1", "exactly one argument"),
        ("9 ** 9 ** 9 ** 9", "for epoch 0"),  # instead of a hang
        ("floor(1e300) ** floor(1e6)", "for epoch 0"),
        ("1 / epoch", "for epoch 0"),
        ("(0 - 8) ** 0.5", "for epoch 0"),
        ("log(0)", "for epoch 0"),
        ("epoch < 1", "gives True for epoch 0; expected a finite number"),
        ("sqrt(1, 2)", "for epoch 0"),
    ],
)
def test_anything_else_is_an_error(text, problem):
    with pytest.raises(ValueError) as caught:
        parse_expression(text)(0)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "text", ["lambda epoch: 0.955 ** epoch", "lambda e: 1 / (1 + 0.1 * -e ** 2)", "0.1 ** (epoch // 30)"]
)
def test_compressed_time_has_the_values_of_later_epochs(text):
    for epoch in (0, 1, 7):
        assert parse_expression(compress_time(text, 5))(epoch) == parse_expression(text)(5 * epoch)
