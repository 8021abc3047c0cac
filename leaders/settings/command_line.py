"""What the scripts of this package share on the command line."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, NoReturn, Union

import tyro

from bocmdp_gym.errors import suggest
from bocmdp_gym.options import as_integer


def read(kind: Any, module: str, description: str | None, arguments: list[str] | None = None, config: Sequence[Any] = ()) -> Any:
    """Settings from the command line, with whole numbers as Python and files take them: 10000, 1e4.

    Args:
        kind: a dataclass of settings, or a union of several; docstrings become help texts.
        module: what is run, as in ``python -m``.
        description: of the script.
        arguments: those of the process if None.
        config: markers of tyro.
    """
    prog = f"python -m {module}"
    return tyro.cli(kind, args=arguments, prog=prog, description=description, config=tuple(config), registry=_NUMBERS)


def choose(kinds: Mapping[str, type[Any]], module: str, description: str | None, arguments: list[str] | None = None) -> Any:
    """Settings of the kind that the first argument names, read from the rest; of ``kinds``, only that one is made.

    Args:
        kinds: dataclasses of settings by the name of their command; docstrings become help texts.
        module: what is run, as in ``python -m``.
        description: of the script.
        arguments: those of the process if None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if (name := named(given, kinds)) is not None:
        return read(kinds[name], f"{module} {name}", kinds[name].__doc__, given[1:])
    return list_commands({name: kind.__doc__ for name, kind in kinds.items()}, module, description, given)


def named(arguments: Sequence[str], commands: Collection[str]) -> str | None:
    """The command that arguments begin with, spelled with hyphens or underscores; None if they name none."""
    name = arguments[0].replace("_", "-") if arguments else None
    return name if name in commands else None


def list_commands(texts: Mapping[str, str | None], module: str, description: str | None, arguments: list[str]) -> NoReturn:
    """Say what the commands are, to arguments that do not begin with one of them, and end the process.

    Args:
        texts: what the commands are for, by name.
        module, description, arguments: as of `choose`.
    """
    if arguments and not {"-h", "--help"} & set(arguments):
        late = next((word for word in arguments if named([word], texts) is not None), None)
        if late is not None:
            print(f"{late} comes before its options: python -m {module} {late} {arguments[0]} ...", file=sys.stderr)
            raise SystemExit(2)
        if not arguments[0].startswith("-"):
            print(f"{arguments[0]!r} is no command of python -m {module}. {suggest(arguments[0], texts)}", file=sys.stderr)
            raise SystemExit(2)
    kinds = {name: make_dataclass("Command", (), namespace={"__doc__": text}) for name, text in texts.items()}
    commands: Any = tuple(Annotated[kind, tyro.conf.subcommand(name, description=texts[name])] for name, kind in kinds.items())
    read(Union[commands], module, description, arguments)  # noqa: UP007
    raise SystemExit(2)


_NUMBERS = tyro.constructors.ConstructorRegistry()


@_NUMBERS.primitive_rule
def _whole(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """How whole numbers are read."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: _integer(words[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = as_integer(float(text))
        if number is None:
            raise ValueError(f"{text} is no whole number") from None
        return number
