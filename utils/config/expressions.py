"""Arithmetic of an epoch, such as `lambda epoch: 0.955 ** epoch`: parsed and computed here, never executed as Python."""

import ast
import math
import operator
from collections.abc import Callable

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS = {
    "pow": math.pow,
    "min": min,
    "max": max,
    "abs": abs,
    **{name: getattr(math, name) for name in ("exp", "log", "sqrt", "sin", "cos", "floor", "ceil")},
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_LONGEST = 500  # characters; no schedule needs more, and a short text cannot nest too deeply


def parse_expression(text: str) -> Callable[[float], float]:
    """Returns the function of one number that `text` describes.

    Args:
        text: `lambda NAME: …`, or the part after the colon with the name `epoch`. Numbers, + - * / // % **, comparisons,
            `… if … else …`, pow, min, max, abs, exp, log, sqrt, sin, cos, floor, ceil, pi and e, these also as `math.…`.

    Raises:
        ValueError: `text` is anything else; the message names the part that is refused.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"'{text}' is not an expression such as 'lambda epoch: 0.955 ** epoch'") from error
    name = "epoch"
    if isinstance(body, ast.Lambda):
        names = [argument.arg for argument in body.args.args]
        if len(names) != 1 or ast.unparse(body.args) != names[0]:
            raise ValueError(f"'{text}' must take exactly one number, the epoch")
        name, body = names[0], body.body
    try:
        _check(body, name)
    except RecursionError as error:
        raise ValueError(f"'{text}' is nested too deeply") from error

    def schedule(epoch: float) -> float:
        try:
            value = _compute(body, {**_CONSTANTS, name: float(epoch)})
        except (ArithmeticError, RecursionError, ValueError, TypeError) as error:
            raise ValueError(f"'{text}' cannot be computed for epoch {epoch}: {error}") from error
        if not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"'{text}' gives {value!r} for epoch {epoch}, not a finite number")
        return value

    return schedule


def sped_up(text: str, factor: int) -> str:
    """Returns the expression whose value for an epoch is that of `text` for the `factor`-fold epoch.

    Raises:
        ValueError: As `parse_expression`.
    """
    parse_expression(text)
    tree = ast.parse(text.strip(), mode="eval").body
    body, name = (tree.body, tree.args.args[0].arg) if isinstance(tree, ast.Lambda) else (tree, "epoch")
    for node in ast.walk(body):
        if isinstance(node, ast.Name) and node.id == name:
            node.id = f"({factor} * {name})"
    return f"lambda {name}: {ast.unparse(body)}"


def _function_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _check(node: ast.expr, variable: str) -> None:
    """Refuses every part that `_compute` does not know, before anything is computed."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            parts = []
        case ast.Name() | ast.Attribute() if _function_name(node) in {variable, *_CONSTANTS}:
            parts = []
        case ast.BinOp() if type(node.op) in _OPERATORS:
            parts = [node.left, node.right]
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            parts = [node.operand]
        case ast.Compare() if len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
            parts = [node.left, node.comparators[0]]
        case ast.IfExp():
            parts = [node.test, node.body, node.orelse]
        case ast.Call(keywords=[]) if _function_name(node.func) in _FUNCTIONS:
            parts = node.args
        case _:
            allowed = ", ".join([variable, *_FUNCTIONS, *_CONSTANTS])
            raise ValueError(f"'{ast.unparse(node)}' is not allowed in an expression; allowed: arithmetic of {allowed}")
    for part in parts:
        _check(part, variable)


def _compute(node: ast.expr, names: dict[str, float]) -> float:
    # Every number becomes a float: powers of integers could grow without bound, floats overflow at once.
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name() | ast.Attribute():
            return names[_function_name(node)]
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_compute(node.left, names), _compute(node.right, names))
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](_compute(node.operand, names))
        case ast.Compare():
            return _OPERATORS[type(node.ops[0])](_compute(node.left, names), _compute(node.comparators[0], names))
        case ast.IfExp():
            return _compute(node.body if _compute(node.test, names) else node.orelse, names)
        case ast.Call():
            return float(_FUNCTIONS[_function_name(node.func)](*(_compute(part, names) for part in node.args)))
    raise AssertionError(ast.dump(node))
