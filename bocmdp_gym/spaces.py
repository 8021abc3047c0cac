"""Parts of spaces, and whether they are made of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from bocmdp_gym.errors import UnsupportedError

_NUMERIC = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


def parts_of(space: gym.Space[Any], name: str = "") -> Iterator[tuple[str, gym.Space[Any]]]:
    """The spaces within Dict and Tuple spaces, at any depth, as they are indexed from ``name``; another space is its one part."""
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        inside = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        for key, part in inside:
            yield from parts_of(part, f"{name}[{key!r}]")
    else:
        yield name, space


def check_numeric(space: gym.Space[Any], who: str) -> None:
    """Refuse observations with parts that are no arrays of numbers: words (MiniGrid's missions), sequences, graphs.

    Args:
        space: of the observations.
        who: reads them.

    Raises:
        UnsupportedError: naming the part, and what takes it out.
    """
    for name, part in parts_of(space, "observation"):
        if not isinstance(part, _NUMERIC):
            raise UnsupportedError(
                f"{who} cannot read observations from {space}: {name} is of {part}, no array of numbers. Leave it out, or turn "
                "it into numbers, by a wrapper inside all of this library's: FlattenObservation(FilterObservation(env, [...])), "
                "of gymnasium.wrappers, shows the named parts of a dictionary as one vector; of a MiniGrid environment, "
                "minigrid.wrappers.ImgObsWrapper(env) shows the image alone, and minigrid.wrappers.FlatObsWrapper(env) the "
                "mission's letters as numbers too."
            )
