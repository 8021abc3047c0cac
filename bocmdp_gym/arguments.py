"""Constructors that refuse misspelt arguments, and reprs that can be pasted back: followers, leaders, estimators.

>>> SoftPolicyIteration(0.001)
SoftPolicyIteration(regularization=0.001)
>>> SoftPolicyIteration(0.001, tolerence=1e-9)
UnknownOptionError: SoftPolicyIteration has no option 'tolerence'. Did you mean 'tolerance'? ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature, signature
from pathlib import PurePath
from typing import Any, Self

import numpy as np

from bocmdp_gym.errors import UnknownOptionError, suggest

#: Arrays of more entries than this are abbreviated in reprs.
_LONGEST = 1000


class _ConstructorSignature:
    """``__signature__``: what `inspect.signature` and the documentation show of a class, which is not that of ``__new__``."""

    def __get__(self, instance: object, owner: type) -> Signature:
        return Signature(parameters_of(owner))


class WithArguments:
    """Base class of objects that know what they were constructed with.

    A subclass writes an ordinary ``__init__``. Before it runs, names it does not have and positional arguments beyond those it
    takes are refused; afterwards ``repr`` shows the arguments that differ from their defaults. Where ``__init__`` takes
    ``**options``, what they may be is for it to say.

    Raises:
        UnknownOptionError: on construction, with the nearest known name.
    """

    __signature__ = _ConstructorSignature()
    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        arguments = check_arguments(cls, args, kwargs)
        self = super().__new__(cls)
        self._arguments = arguments
        return self

    def __repr__(self) -> str:
        parameters = {p.name: p for p in parameters_of(type(self))}
        shown: list[str] = []
        for name, value in self._arguments.items():
            parameter = parameters.get(name)
            if parameter is not None and parameter.kind is Parameter.VAR_POSITIONAL:
                shown += map(_text, value)
            elif parameter is not None and parameter.kind is Parameter.POSITIONAL_ONLY:
                shown.append(_text(value))
            elif parameter is None or not _equal(value, parameter.default):
                shown.append(f"{name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def parameters_of(cls: type) -> list[Parameter]:
    """Parameters of a class's ``__init__``, without ``self``; none where it has no ``__init__`` of its own."""
    constructor: Any = vars(next(base for base in cls.__mro__ if "__init__" in vars(base)))["__init__"]
    return [] if constructor is object.__init__ else list(signature(constructor).parameters.values())[1:]


def check_arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor by name, in the order of its parameters; missing ones are left to Python.

    Raises:
        UnknownOptionError: a name the constructor does not have, too many positional arguments, or one given twice.
    """
    parameters = parameters_of(cls)
    kinds = {p.kind for p in parameters}
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in kwargs:
        if name not in by_name and Parameter.VAR_KEYWORD not in kinds:
            raise UnknownOptionError(f"{cls.__name__} has no option {name!r}. {suggest(name, by_name)}")
    if len(args) > len(by_position) and Parameter.VAR_POSITIONAL not in kinds:
        taken = f"{len(by_position)} ({', '.join(by_position)})" if by_position else "none"
        raise UnknownOptionError(
            f"{cls.__name__} was given {len(args)} positional arguments; expected at most {taken}. Name the others: "
            f"{', '.join(by_name[len(by_position) :]) or 'there are none'}."
        )
    given = dict(zip(by_position, args, strict=False))
    for name in given.keys() & kwargs.keys() & set(by_name):
        raise UnknownOptionError(f"{cls.__name__} was given {name} twice, by position and by name.")
    if len(args) > len(by_position):
        given[next(p.name for p in parameters if p.kind is p.VAR_POSITIONAL)] = tuple(args[len(by_position) :])
    given |= kwargs
    order = {p.name: i for i, p in enumerate(parameters)}
    return dict(sorted(given.items(), key=lambda item: order.get(item[0], len(order))))


def _equal(value: Any, default: Any) -> bool:
    if value is default:
        return True
    try:
        return type(value) is type(default) and bool(value == default)
    except (RuntimeError, ValueError):  # of arrays, which are not one truth value
        return False


def _text(value: Any) -> str:
    """A value as it is written in code."""
    name = getattr(value, "__qualname__", None)  # of classes and functions, compiled ones included
    if callable(value) and isinstance(name, str):
        return name
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size <= _LONGEST):
        return repr(value.tolist())
    if isinstance(value, PurePath):
        return repr(str(value))
    if type(value) is dict:
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if type(value) is list:
        return f"[{', '.join(map(_text, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
