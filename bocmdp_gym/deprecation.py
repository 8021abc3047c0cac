"""Deprecations: a name or an argument that changes keeps working for one minor release, and warns.

The warning is a ``FutureWarning``, which Python shows to users by default. It says since when, until when, and what to write
instead. `CONTRIBUTING.md` has the policy.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any, TypeVar, cast

__all__ = ["deprecated_argument", "deprecated_name"]

F = TypeVar("F", bound=Callable[..., Any])


def deprecated_name(old: str, new: str, since: str, removed: str, *, stacklevel: int = 2) -> None:
    """Warn that a name was replaced; call it where the old name is used (a module's ``__getattr__``, a function's body).

    Args:
        old, new: the names, as users write them.
        since: the version that replaced it.
        removed: the version that will not have it.
        stacklevel: whom to blame, as for ``warnings.warn``: 1 is the code that calls this function, 2 its caller.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename == __file__:  # decorators of this module may be stacked
        frame, stacklevel = frame.f_back, stacklevel + 1
    text = f"{old} is deprecated since version {since} and will be removed in {removed}; use {new}."
    warnings.warn(text, FutureWarning, stacklevel=stacklevel)


def deprecated_argument(
    old: str, new: str | None, since: str, removed: str, convert: Callable[[Any], Any] | None = None
) -> Callable[[F], F]:
    """Decorate a function (or ``__init__``) whose keyword ``old`` was renamed to ``new``, or is ignored from now on.

    Args:
        old: the keyword, which the signature no longer has.
        new: its new name; None: it has no effect any more.
        since: the version that replaced it.
        removed: the version that will refuse it.
        convert: turns an old value into a new one.

    Raises:
        TypeError: (when called) both the old and the new keyword.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                value = kwargs.pop(old)
                name = f"{function.__qualname__.removesuffix('.__init__')}({old}=...)"
                if new is None:
                    deprecated_name(name, "it without: it has no effect", since, removed, stacklevel=1)
                elif new in kwargs:
                    raise TypeError(f"{name} was renamed to {new}, and both were given; give {new} alone.")
                else:
                    deprecated_name(name, f"{new}=...", since, removed, stacklevel=1)
                    kwargs[new] = value if convert is None else convert(value)
            return function(*args, **kwargs)

        cast(Any, wrapper).deprecated_arguments = (*getattr(function, "deprecated_arguments", ()), old)
        return cast(F, wrapper)

    return decorate
