"""Frozen dataclasses <-> the one canonical JSON line of each: what is recorded can be replayed to the last bit.

Floats are written as Python's shortest text that reads back as the same f64; only finite ones can be written. Decoding
accepts nothing but the line that encoding would have produced, so equal values have equal bytes, and equal hashes.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, TypeVar

from templar_jax.errors import DataError

T = TypeVar("T")
INT_LIMIT = 2**63


def encode(value: Any) -> bytes:
    """One line of JSON with its newline. DataError for a number that is not finite."""
    try:
        text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise DataError(f"a {type(value).__name__} holds a number that is not finite: record it clamped") from error
    return text.encode("ascii") + b"\n"


def decode(kind: type[T], line: bytes) -> T:
    """The value of type `kind` in one line. DataError unless `line` is exactly what `encode` gives for it."""
    try:
        value = _typed(kind, json.loads(line))
        same = encode(value) == line
    except (ValueError, TypeError, KeyError, RecursionError, DataError) as error:
        raise DataError(f"not a recorded {kind.__name__}: {error}; take the file from its author again") from error
    if not same:
        raise DataError(f"a {kind.__name__} in another than its canonical form: take the file from its author again")
    return value


def _plain(value: Any) -> Any:
    """Dataclasses become objects, tuples (named ones too) arrays."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, value: Any) -> Any:
    """`value` as parsed from JSON, checked against the annotation `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # X | None
        return None if value is None else _typed(args[0], value)
    if origin is tuple:
        return _tuple(args, _expect(list, value))
    if dataclasses.is_dataclass(kind):
        hints, found = _hints(typing.cast(type, kind)), _expect(dict, value)
        if found.keys() != hints.keys():
            raise ValueError(f"fields {sorted(found)} of {kind.__name__}")  # pyright: ignore[reportAttributeAccessIssue]
        return kind(**{name: _typed(hint, found[name]) for name, hint in hints.items()})  # pyright: ignore
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        hints, items = _hints(kind), _expect(list, value)
        return kind(*(_typed(hint, item) for hint, item in zip(hints.values(), items, strict=True)))
    return _number(_expect(kind, value))


def _tuple(args: tuple, items: list) -> tuple:
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_typed(args[0], item) for item in items)
    return tuple(_typed(arg, item) for arg, item in zip(args, items, strict=True))


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where a {kind.__name__} belongs")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, int) and not -INT_LIMIT <= value < INT_LIMIT:
        raise ValueError("an integer of more than 64 bits")
    return value
