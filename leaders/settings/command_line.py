"""What the scripts of this package share on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Union

import tyro


def choose(kinds: Mapping[str, type[Any]], module: str, description: str | None, arguments: list[str] | None = None) -> Any:
    """Settings of the kind that the first argument names, read from the rest.

    Args:
        kinds: dataclasses of settings by the name of their command; docstrings become help texts.
        module: what is run, as in ``python -m``.
        description: of the script.
        arguments: those of the process if None.
    """
    commands: Any = tuple(Annotated[kind, tyro.conf.subcommand(name, description=kind.__doc__)] for name, kind in kinds.items())
    return tyro.cli(
        Union[commands],  # noqa: UP007
        args=arguments,
        prog=f"python -m {module}",
        description=description,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
