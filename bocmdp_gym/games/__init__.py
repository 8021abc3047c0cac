"""Markov games: several learners who meet, as one configurable environment.

`MarkovGame` makes a PettingZoo parallel environment configurable; ``followers.IndependentLearners`` are those who play it.
`EscapeRoom` is an example, and needs PettingZoo (``pip install 'bocmdp-gym[multi-agent]'``): it is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bocmdp_gym.games.markov_game import GameStep, MarkovGame

if TYPE_CHECKING:
    from bocmdp_gym.games.escape_room import EscapeRoom, paid_escape_room

__all__ = ["EscapeRoom", "GameStep", "MarkovGame", "paid_escape_room"]


def __getattr__(name: str) -> Any:
    if name in ("EscapeRoom", "paid_escape_room"):
        return getattr(import_module("bocmdp_gym.games.escape_room"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
