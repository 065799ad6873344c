"""Values in a labeling config as Label Studio's editor reads them: text in which variables stand for a task's data.

`$image` is whatever the data contain there, including a list; with anything around it the value is a text, which may
have several variables: `https://host/$folder/$name`. A variable ends at the first character other than an ASCII letter,
a digit, `_`, `.`, `[`, `]`, `{` or `}`, so `$name.jpg` is the variable `name.jpg`. These are the rules of Label Studio
1.23's editor, taken from its source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
_MAX_TEXT = 64 << 20
"""Characters of an evaluated text: a config could repeat a long value thousands of times."""


class MissingValueError(ValueError):
    """The task's data have no text where an expression needs it; the message is the variable."""


def has_variable(expression: str) -> bool:
    """Whether an expression depends on the task."""
    return _VARIABLE.search(expression) is not None


def evaluate(expression: str, data: Mapping[str, Any]) -> Any:
    """The value of an expression for a task's data: for a single variable the value itself, None if there is none;
    otherwise a text. Raises `MissingValueError` for a variable in a text whose value is neither text nor number."""
    if _VARIABLE.fullmatch(expression):
        return look_up(data, expression[1:])
    pieces: list[str] = []
    length, end = 0, 0
    for variable in _VARIABLE.finditer(expression):
        piece = _text(look_up(data, variable[0][1:]))
        if piece is None:
            raise MissingValueError(variable[0])
        pieces += expression[end : variable.start()], piece
        length += len(piece)
        if length > _MAX_TEXT:
            raise MissingValueError(f"{variable[0]} (the text is too long)")
        end = variable.end()
    return "".join([*pieces, expression[end:]])


def look_up(data: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `images[0].url`; None if there is none. A key that is spelled like the whole path
    comes first."""
    if path in data:
        return data[path]
    if not any(mark in path for mark in ".[]"):
        return None
    value: Any = data
    for key in _keys(path):
        value = _step(value, key)
        if value is None:
            return None
    return value


def _keys(path: str) -> list[str]:
    """`a[0].b` as a, 0, b. An empty bracket and a leading dot are empty keys; other empty parts are ignored."""
    keys = [""] if path.startswith(".") else []
    for part in re.finditer(r"\[([^\]]*)\]|\[([^\]]+)$|([^.\[]+)", path):
        keys.append(next(group for group in part.groups() if group is not None))
    return keys


def _step(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, (list, str)) and re.fullmatch("0|[1-9][0-9]{0,8}", key) and int(key) < len(value):
        return value[int(key)]
    return None


def _text(value: Any) -> str | None:
    """A value inside a text, as JavaScript writes it; None for values without a sensible text."""
    if isinstance(value, list):
        parts = [_scalar_text(part) for part in value]
        return None if not parts or None in parts else ",".join(map(str, parts))
    return _scalar_text(value)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value) if isinstance(value, (str, int, float)) else None
