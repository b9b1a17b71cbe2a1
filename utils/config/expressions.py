"""Expressions of the epoch, such as `lambda epoch: 0.955 ** epoch`, evaluated by simpleeval and never executed as Python."""

import ast
import math
from collections.abc import Callable
from typing import Any

from simpleeval import DEFAULT_OPERATORS, InvalidExpression, ModuleWrapper, SimpleEval

from utils.nearest import nearest

MAX_LENGTH = 500  # characters; longer than any schedule, and too short to nest deeply
CONSTANTS = {"pi": math.pi, "e": math.e}
FUNCTIONS = {
    "pow": math.pow,
    "min": min,
    "max": max,
    "abs": abs,
    **{name: getattr(math, name) for name in ("exp", "log", "sqrt", "sin", "cos", "floor", "ceil")},
}
NAMES = {**CONSTANTS, "math": ModuleWrapper(math, {*CONSTANTS, *FUNCTIONS})}
# Floats overflow; powers of integers grow without bound.
OPERATORS = {**DEFAULT_OPERATORS, ast.Pow: lambda base, exponent: float(base) ** float(exponent)}


def parse_expression(text: str) -> Callable[[float], float]:
    """Returns the function of one number that `text` describes, computed in floats.

    Args:
        text: `lambda NAME: …`, or only the part after the colon with the name `epoch`. Arithmetic, comparisons,
            `… if … else …`, pow, min, max, abs, exp, log, sqrt, sin, cos, floor, ceil, pi and e, also as `math.…`.

    Raises:
        ValueError: `text` is not such an expression. The returned function raises it where its value is not finite.
    """
    body, variable = _parse(text)
    evaluator = SimpleEval(operators=OPERATORS, functions=FUNCTIONS)
    evaluator.nodes[ast.Constant] = _constant

    def schedule(epoch: float) -> float:
        evaluator.names = {**NAMES, variable: float(epoch)}
        try:
            value = evaluator.eval(text, body)
        except (ArithmeticError, AttributeError, InvalidExpression, TypeError, ValueError) as error:
            raise ValueError(f"'{text}' cannot be computed for epoch {epoch}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"'{text}' gives {value!r} for epoch {epoch}; expected a finite number")
        return float(value)

    return schedule


def compress_time(text: str, factor: int) -> str:
    """Returns the expression whose value at an epoch is that of `text` at `factor` times the epoch.

    Raises:
        ValueError: As `parse_expression`.
    """
    body, variable = _parse(text)
    for node in ast.walk(body):
        if isinstance(node, ast.Name) and node.id == variable:
            node.id = f"({factor} * {variable})"
    return f"lambda {variable}: {ast.unparse(body)}"


def _parse(text: str) -> tuple[ast.expr, str]:
    """Returns the part after the colon, and the name of the epoch in it."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{text}' is not an expression such as 'lambda epoch: 0.955 ** epoch'") from error
    variable = "epoch"
    if isinstance(body, ast.Lambda):
        names = [argument.arg for argument in body.args.args]
        if len(names) != 1 or ast.unparse(body.args) != names[0]:
            raise ValueError(f"'{text}' must take exactly one argument, the epoch")
        variable, body = names[0], body.body
    allowed = {variable, *NAMES, *FUNCTIONS}
    for node in ast.walk(body):
        if isinstance(node, ast.Name) and node.id not in allowed:
            raise ValueError(f"'{text}': unknown name '{node.id}'.{nearest(node.id, sorted(allowed))}")
    return body, variable


def _constant(node: ast.Constant) -> Any:
    if type(node.value) not in (int, float):
        raise ValueError(f"{node.value!r} is not a number")
    return float(node.value)
