"""Values written as text on a command line."""

import ast
import difflib
import operator
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def nearest(name: str, known: Iterable[str], prefix: str = "", ending: str = "") -> str:
    """Returns "; did you mean ...?" with up to three similar names between prefix and ending, or ""."""
    known = list(known)
    end = name.rpartition(".")[2]
    found = [other for other in known if other == end]  # of the right name, in a wrong group
    alike = difflib.get_close_matches(name, known, 3, 0.75)  # its group's name may be most of it
    found += [other for other in alike if _alike(end, other.rpartition(".")[2]) > 0.5]
    ends = {other.rpartition(".")[2] for other in known}
    for similar in difflib.get_close_matches(end, sorted(ends), 2, 0.75):
        found += [other for other in known if other.rpartition(".")[2] == similar]
    chosen = list(dict.fromkeys(found))[:3]
    texts = [f"{prefix}{one}{ending}" for one in chosen]
    return f"; did you mean {' or '.join(texts)}?" if chosen else ""


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def parse(text: str, hint: Any, now: Any = None) -> Any:
    """Returns the value of a type that a text stands for.

    Numbers may be written as arithmetic: 8/255, 1e-3, 2**-4. A tuple may lack its brackets.

    Args:
      text: as written.
      hint: type of the field; Any to go by `now`, and without it by how the text looks.
      now: the field's value so far.

    Raises:
      ValueError: it is no such value; the message completes "NAME=TEXT: ".
    """
    if hint is Any and type(now) in (bool, str):
        hint = type(now)
    hint, text = _plain(hint), text.strip()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        return parse(text, next(kind for kind in arguments if kind is not type(None)), now)
    if hint is bool:
        return _bool(text)
    if hint in (int, float):
        return _number(text, hint)
    if origin is tuple:
        return _tuple(text, arguments[0])
    if hint is str or origin is typing.Literal:
        return text
    if origin is dict:
        return _dict(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return _literal(text)
    except ValueError:
        return text


def _plain(hint: Any) -> Any:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _bool(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("expected True or False")
    return text.lower() in _TRUE


def _number(text: str, kind: type) -> float:
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(text)  # the schema says that it must be finite
    try:
        value = _literal(text)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        example = "an integer" if kind is int else "a number, such as 0.5, 1e-3 or 8/255"
        raise ValueError(f"expected {example}")
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    return float(value) if kind is float else value


def _dict(text: str) -> dict[str, Any]:
    try:
        value = _literal(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("expected a dict, such as {'name': 0.5}")
    return value


def _tuple(text: str, inner: Any) -> tuple[Any, ...]:
    if _plain(inner) is str and "'" not in text and '"' not in text:
        return tuple(part.strip() for part in text.strip("()[]").split(",") if part.strip())
    if _plain(inner) is int and re.search(r"\d\s*-\s*\d", text):
        raise ValueError("expected a tuple, such as (1, 2); write a range out, such as 0,1,2")
    try:
        value = _literal(text)
    except ValueError:
        raise ValueError("expected a tuple, such as (1, 2)") from None
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _literal(text: str) -> Any:
    """A Python literal in which numbers may be arithmetic."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ArithmeticError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} is no value") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and all(node.keys):
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.Name) and node.id in ("nan", "inf"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else +value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left), _value(node.right)
        numbers = all(type(side) in (int, float) for side in (left, right))
        if numbers and not (isinstance(node.op, ast.Pow) and abs(right) > 64):
            return _OPERATIONS[type(node.op)](left, right)
    raise ValueError(f"{ast.unparse(node)} is no value")
