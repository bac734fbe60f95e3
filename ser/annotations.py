"""Does a value fit a type annotation? Enough of it to check what a configuration says."""

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

__all__ = ["fits", "type_name"]


def fits(value: Any, wanted: Any, unknown: type | tuple[type, ...] = ()) -> bool:
    """Say whether a literal may stand where ``wanted`` is annotated.

    Args:
        value: the literal.
        wanted: the annotation.
        unknown: types of what may turn out to be anything; it fits everywhere.
    """
    if wanted is Any or isinstance(value, unknown):
        return True
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option, unknown) for option in typing.get_args(wanted))
    if wanted in (None, type(None)):
        return value is None
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (Sequence, list, tuple):
        inner = typing.get_args(wanted)[:1]
        return isinstance(value, list | tuple) and all(
            fits(item, inner[0] if inner else Any, unknown) for item in value
        )
    return isinstance(value, wanted) if inspect.isclass(wanted) else True


def type_name(wanted: Any) -> str:
    """Name a type for people."""
    return wanted.__name__ if inspect.isclass(wanted) else str(wanted).replace("typing.", "")
