"""Settings from signatures: an argument of a constructor, with its annotation, default and docstring, as an option of a command.

Types that a command line and a JSON file can hold become settings: truth values, numbers, text, choices (`Literal`), lists of
these, and JSON for whatever is nested deeper. Arguments of other types (functions, models) are left out. Choices are written with
hyphens.
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy.typing as npt
import tyro

_SCALARS = (bool, int, float, str)
#: What an argument that takes arrays may be; from NumPy 2.5 on ArrayLike is one name and no longer a union.
_ARRAY = frozenset(get_args(npt.ArrayLike) or (npt.ArrayLike,))


@dataclass(frozen=True)
class Option:
    """One setting that is an argument of a constructor.

    Attributes:
        name: of the argument.
        kind: the setting's type.
        default: the argument's; `dataclasses.MISSING` if it has none.
        help: what its docstring says of it.
        spelling: the argument's value for choices that the setting spells otherwise.
    """

    name: str
    kind: Any
    default: Any
    help: str
    spelling: Mapping[str, str]

    def value(self, setting: Any) -> Any:
        """The argument's value."""
        if isinstance(setting, tuple):
            return tuple(self.value(part) for part in setting)
        return self.spelling.get(setting, setting) if isinstance(setting, str) else setting

    def field(self, owner: str) -> Field[Any]:
        """A field of a dataclass of settings, which remembers what the option is of."""
        metadata = {"option": self, "owner": owner}
        if callable(getattr(self.default, "copy", None)):
            return field(default_factory=self.default.copy, metadata=metadata)
        made: Field[Any] = field(default=self.default, metadata=metadata)
        return made


def options_of(parameters: Iterable[Parameter], constructor: Callable[..., Any], about: Mapping[str, str]) -> dict[str, Option]:
    """The arguments of a constructor that a setting can hold, by name.

    Args:
        parameters: those to look at.
        constructor: whose annotations they have.
        about: what is said of them.
    """
    hints = get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    found = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        annotation = hints.get(p.name, Any if p.default in (None, p.empty) else type(p.default))
        option = option_of(p.name, annotation, MISSING if p.default is p.empty else p.default, about.get(p.name, ""))
        if option is not None:
            found[p.name] = option
    return found


def option_of(name: str, annotation: Any, default: Any, about: str) -> Option | None:
    """An argument as a setting, from its annotation; None if a setting cannot hold it."""
    kind = setting_type(annotation)
    if kind is None:
        return None
    spelling = {_hyphens(one): one for one in _choices(annotation)}
    return Option(name, kind, _plain(default, {one: said for said, one in spelling.items()}), about, spelling)


def setting_type(annotation: Any) -> Any:
    """The type of a setting for an argument with this annotation; None if a setting cannot hold it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (*_SCALARS, Any):
        return annotation
    if annotation in (list, tuple, npt.ArrayLike):
        return Any
    if annotation is dict:
        return dict[str, Any]
    if origin is Literal:
        return Literal[tuple(_hyphens(one) for one in inner)]
    if origin in (Union, types.UnionType):
        if set(inner) >= _ARRAY:
            return Any
        known = [kind for kind in map(setting_type, (a for a in inner if a is not type(None))) if kind is not None]
        return functools.reduce(operator.or_, [*known, *([None] if type(None) in inner else [])]) if known else None
    if origin is tuple and inner[-1] is not Ellipsis:
        known = [setting_type(one) for one in inner]
        return None if None in known else tuple.__class_getitem__(tuple(known))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return dict[str, Any]
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        kind = setting_type(inner[0])
        return None if kind is None else tuple.__class_getitem__((kind, ...))
    return None


def needs_json(kind: Any) -> bool:
    """Whether a command line can only hold values of this type as JSON."""
    inner = [one for one in get_args(kind) if one not in (type(None), Ellipsis)]
    if get_origin(kind) in (Union, types.UnionType):
        return any(map(needs_json, inner))
    if get_origin(kind) is tuple:
        return any(one not in _SCALARS and get_origin(one) is not Literal for one in inner)
    return kind is Any or get_origin(kind) is dict


def from_file(kind: Any) -> bool:
    """Whether a value of this type may be read from a file, named after an @."""
    in_union = get_origin(kind) in (Union, types.UnionType) and str in get_args(kind)
    return needs_json(kind) or kind is str or in_union


def annotated(option: Option, hint: str | None = None) -> Any:
    """An option's type with its help text; ``hint`` is what that says of the default, the default itself if None."""
    text = (option.help[:1].upper() + option.help[1:]).replace("`", "")
    notes: list[Any] = []
    if needs_json(option.kind):
        text = f"{text.rstrip('.')}. As JSON, or @FILE."
        notes.append(_AS_JSON)
        hint = f"(default: {json.dumps(option.default)})" if hint is None else hint
    elif from_file(option.kind) and get_origin(option.kind) in (Union, types.UnionType):
        text = f"{text.rstrip('.')}. @FILE reads it from a file."
    if isinstance(option.default, str) and "\n" in option.default:
        hint = "(default: a drawing)"
    return Annotated[option.kind, tyro.conf.arg(help=text, help_behavior_hint=hint), *notes]


#: JSON comes as it is, to be read with the other values.
_AS_JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: True,
    str_from_instance=lambda value: [json.dumps(value)],
)


def _choices(annotation: Any) -> tuple[str, ...]:
    """All choices within an annotation that are text."""
    if get_origin(annotation) is Literal:
        return tuple(one for one in get_args(annotation) if isinstance(one, str))
    return tuple(one for inner in get_args(annotation) for one in _choices(inner))


def _hyphens(choice: Any) -> Any:
    return choice.replace("_", "-") if isinstance(choice, str) else choice


def _plain(value: Any, spelled: Mapping[str, str]) -> Any:
    """A default as a setting holds it."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(part, spelled) for part in value)
    return spelled.get(value, value) if isinstance(value, str) else value
