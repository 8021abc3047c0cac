"""Arguments: constructors and functions refuse misspelt ones; reprs of followers, leaders and estimators can be pasted back.

>>> SoftPolicyIteration(0.001)
SoftPolicyIteration(regularization=0.001)
>>> SoftPolicyIteration(0.001, tolerence=1e-9)
UnknownOptionError: SoftPolicyIteration has no option 'tolerence'. Did you mean 'tolerance'? ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, Signature, signature
from pathlib import PurePath
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

import numpy as np
import torch

from bocmdp_gym.errors import UnknownOptionError, suggest

P = ParamSpec("P")
R = TypeVar("R")
#: Arrays of more entries than this are abbreviated in reprs.
_LONGEST = 1000


class _ConstructorSignature:
    """``__signature__``: what `inspect.signature` and the documentation show of a class, which is not that of ``__new__``."""

    def __get__(self, instance: object, owner: type) -> Signature:
        return Signature(parameters_of(owner))


class Constructed:
    """Base class whose constructors refuse unknown arguments before ``__init__`` sees them.

    A subclass writes an ordinary ``__init__``, or is a dataclass. Names it does not have and positional arguments beyond those
    it takes are refused. Where ``__init__`` takes ``**options``, what they may be is for it to say. Deprecated arguments are for
    `bocmdp_gym.deprecation` to convert.

    Raises:
        UnknownOptionError: on construction, with the nearest known name.
    """

    #: Whether objects remember what they were constructed with, as what makes a run's identity must; others hold on to nothing.
    _records = False
    #: What to do instead of giving an argument that similar classes have, by its name.
    _instead: ClassVar[Mapping[str, str]] = {}
    _given_arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        kind: Any = cls
        accepted = _accepted(kind)
        # the usual case, without a message to find: names it has, after positions it has
        usual = len(args) < len(accepted) and kwargs.keys() <= accepted[len(args)]
        if usual and not cls._records:
            return super().__new__(cls)
        current = _current(cls, kwargs)
        if not usual:
            check_arguments(cls.__name__, parameters_of(cls), args, current, cls._instead)
        self = super().__new__(cls)
        if cls._records:
            object.__setattr__(self, "_given_arguments", bind_arguments(parameters_of(cls), args, current))  # frozen ones too
        return self


class WithArguments(Constructed):
    """`Constructed`, and the object knows what it was constructed with: ``repr`` shows what differs from the defaults."""

    __signature__: Any = _ConstructorSignature()
    _records = True

    def __repr__(self) -> str:
        parameters = {p.name: p for p in parameters_of(type(self))}
        shown: list[str] = []
        for name, value in self._given_arguments.items():
            parameter = parameters.get(name)
            if parameter is not None and parameter.kind is Parameter.VAR_POSITIONAL:
                shown += map(_text, value)
            elif parameter is not None and parameter.kind is Parameter.POSITIONAL_ONLY:
                shown.append(_text(value))
            elif parameter is None or not _equal(value, parameter.default):
                shown.append(f"{name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _current(cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords that are not deprecated."""
    deprecated = getattr(cls.__init__, "deprecated_arguments", ())  # type: ignore[misc]
    return {name: value for name, value in kwargs.items() if name not in deprecated} if deprecated else kwargs


def parameters_of(cls: type) -> tuple[Parameter, ...]:
    """Parameters of a class's ``__init__``, without ``self``; none where it has no ``__init__`` of its own."""
    return _parameters(cls)


@cache
def _accepted(cls: Any) -> tuple[frozenset[str], ...]:
    """The names that a constructor takes after 0, 1, ... arguments by position, up to as many of these as it takes."""
    parameters = parameters_of(cls)
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return tuple(by_name.difference(by_position[:n]) for n in range(len(by_position) + 1))


@cache
def _parameters(cls: Any) -> tuple[Parameter, ...]:
    constructor: Any = vars(next(base for base in cls.__mro__ if "__init__" in vars(base)))["__init__"]
    return () if constructor is object.__init__ else tuple(signature(constructor).parameters.values())[1:]


def check_arguments(
    name: str, parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], instead: Mapping[str, str] = {}
) -> None:
    """Refuse arguments that a function or constructor called ``name`` does not have; missing ones are left to Python.

    ``instead``: what the message says of some names, in the place of the nearest known ones.

    Raises:
        UnknownOptionError: a name that is not among ``parameters``, too many positional arguments, or one given twice.
    """
    kinds = {p.kind for p in parameters}
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for given in kwargs:
        if given not in by_name and Parameter.VAR_KEYWORD not in kinds:
            raise UnknownOptionError(f"{name} has no option {given!r}. {instead.get(given) or suggest(given, by_name)}")
    if len(args) > len(by_position) and Parameter.VAR_POSITIONAL not in kinds:
        taken = f"{len(by_position)} ({', '.join(by_position)})" if by_position else "none"
        raise UnknownOptionError(
            f"{name} was given {len(args)} positional arguments; expected at most {taken}. Name the others: "
            f"{', '.join(by_name[len(by_position) :]) or 'there are none'}."
        )
    for twice in by_position[: len(args)]:
        if twice in kwargs and twice in by_name:
            raise UnknownOptionError(f"{name} was given {twice} twice, by position and by name.")


def bind_arguments(parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that `check_arguments` accepts, by name, in the order of the parameters."""
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = dict(zip(by_position, args, strict=False))
    if len(args) > len(by_position):
        given[next(p.name for p in parameters if p.kind is p.VAR_POSITIONAL)] = tuple(args[len(by_position) :])
    given |= kwargs
    order = {p.name: i for i, p in enumerate(parameters)}
    return dict(sorted(given.items(), key=lambda item: order.get(item[0], len(order))))


def same_arguments(first: WithArguments, second: WithArguments) -> bool:
    """Whether two objects of one class were constructed alike: they do the same, until something changes them."""
    defaults = {p.name: p.default for p in parameters_of(type(first))}
    mine, theirs = ({**defaults, **one._given_arguments} for one in (first, second))
    return first is second or (mine.keys() == theirs.keys() and all(_equal(mine[name], theirs[name]) for name in mine))


def known_options(
    elsewhere: Mapping[str, str] | None = None, onto: Callable[..., Any] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: it refuses arguments that it does not have, with the nearest it has.

    Args:
        elsewhere: what to say of names that other functions have.
        onto: the function that its ``**options`` go on to.

    Raises:
        UnknownOptionError: (when called) as `check_arguments`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, parameters = function.__name__, tuple(signature(function).parameters.values())
        if onto is not None:
            own = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
            further = (p.replace(kind=p.KEYWORD_ONLY) for p in signature(onto).parameters.values())
            parameters = (*own.values(), *(p for p in further if p.name not in {**own, **(elsewhere or {})}))

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for given in kwargs:
                if elsewhere is not None and given in elsewhere:
                    raise UnknownOptionError(f"{name} has no option {given!r}; {elsewhere[given]}")
            check_arguments(name, parameters, args, kwargs)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def _equal(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default):
        return False
    if isinstance(value, WithArguments):
        return same_arguments(value, default)
    if isinstance(value, torch.Tensor):
        return bool(torch.equal(value, default))
    try:
        return bool(np.array_equal(value, default) if isinstance(value, np.ndarray) else value == default)
    except (RuntimeError, TypeError, ValueError):  # of what has no single truth value
        return False


def _text(value: Any) -> str:
    """A value as it is written in code."""
    name = getattr(value, "__qualname__", None)  # of classes and functions, compiled ones included
    if callable(value) and isinstance(name, str):
        return name
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
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
