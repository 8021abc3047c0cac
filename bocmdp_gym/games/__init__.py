"""Markov games: several learners who meet, as one configurable environment.

`MarkovGame` makes a PettingZoo parallel environment configurable; ``followers.IndependentLearners`` are those who play it.
`EscapeRoom` is an example, and needs PettingZoo (``pip install 'bocmdp-gym[multi-agent]'``): it is imported when first used.
"""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from bocmdp_gym.games.escape_room import EscapeRoom, paid_escape_room
    from bocmdp_gym.games.markov_game import GameStep, MarkovGame
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = ["EscapeRoom", "GameStep", "MarkovGame", "paid_escape_room"]
