"""What an environment may offer in addition to x and contexts: each hook with its meaning and its default.

Followers and leaders read hooks from the layer that `bocmdp_gym.configurable` returns. `ConfigurableEnv` and
`ConfigurableWrapper` inherit them; an environment that derives from neither is seen through `Adapted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.trajectories import Trajectories


class Hooks:
    """Optional parts of an environment, with their defaults. An environment overrides those it has.

    Attributes:
        model: what is known of the problem; None if nothing is.
        context_probabilities: P_xi ``(C,)`` where contexts are finitely many; None otherwise.
        horizon: steps after which an episode is truncated; None: it is not.
        context_observed: whether observations show the context.
        exposes_states: whether observations show the state of a tabular ``model``: `observe` and `states_of` translate.
        interpolates: whether ``model`` discretises the problem on a grid, so that a policy tabulated on the grid acts through
            `neighbours` and `joint_action`.
        met_regularization: lambda of the followers that this one meets, where what it is paid depends on what they do
            (`bocmdp_gym.PopulationBOCMDP`): its own must be the same, if it has one. None: it meets nobody.
        pays_later: whether `pay` can work out at once, for whole trajectories, what depends on x in their rewards: while
            ``is_deferred`` is set, steps pay the rest alone, and the leader 0.
        agents: names of the agents of a Markov game (`bocmdp_gym.games.MarkovGame`), each with a learner of its own; (): one
            follower acts.
        result_name: the file name of `result_figure`, without extension; None if there is no figure.
    """

    leader_space: gym.spaces.Box
    model: BOCMDP | None = None
    context_probabilities: npt.NDArray[np.float64] | None = None
    horizon: int | None = None
    context_observed: bool = False
    exposes_states: bool = False
    interpolates: bool = False
    met_regularization: float | None = None
    pays_later: bool = False
    is_deferred: bool = False
    agents: tuple[str, ...] = ()
    result_name: str | None = None

    @property
    def layer(self) -> Any:
        """The layer of the environment that these hooks belong to: this object, or what `Adapted` stands for."""
        return self

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """A starting point x_0 for a leader ``(d,)``. Default: the point of ``leader_space`` nearest to zero."""
        del rng
        return np.clip(np.zeros(self.leader_space.shape), self.leader_space.low, self.leader_space.high)

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The best value known for a leader, with its source. Default: None, nothing is known.

        Args:
            regularization: the follower's lambda it must hold at, 0.0 for the limit lambda -> 0; None: one for which it is
                known, named in the answer.

        Returns:
            None where none is known at these settings.
        """
        del regularization
        return None

    def constraints(self) -> list[dict[str, Any]]:
        """What x must satisfy: keywords of ``leaders.Constraint``, one dictionary each. Default: none."""
        return []

    def leader_outlines(self) -> Sequence[npt.NDArray[np.float64]] | None:
        """Where the components of x lie on a map: the outline of each, corners ``(n, 2)``, y upwards. Default: None, nowhere."""
        return None

    def result_figure(self, x: npt.ArrayLike, policies: npt.NDArray[np.float64]) -> Any:
        """A matplotlib figure of x and the policies ``(C, S, A)`` that answer it; set ``result_name`` as well.

        Raises:
            UnsupportedError: there is no figure (the default).
        """
        raise self._missing("no result_figure; check result_name, which is None, first")

    def observe(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Observations ``(N, ...)`` of states ``(N,)`` of the model.

        Raises:
            UnsupportedError: observations do not show states (the default).
        """
        raise self._missing("no observe(states), as its observations do not show states")

    def states_of(self, observations: Any) -> Any:
        """States of observations, the inverse of `observe`.

        Raises:
            UnsupportedError: observations do not show states (the default).
        """
        raise self._missing("no states_of(observations), as its observations do not show states")

    def neighbours(self, observation: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The grid states next to observations ``(..., n)``, and their weights, which sum to 1, both ``(..., K)``.

        Raises:
            UnsupportedError: the model is not a grid (the default).
        """
        raise self._missing("no neighbours(observation), as its model is not a grid")

    def joint_action(self, index: int | npt.NDArray[np.int64]) -> Any:
        """The environment's action for the model's action ``index``, or those of several, one per row.

        Raises:
            UnsupportedError: the model is not a grid (the default).
        """
        raise self._missing("no joint_action(index), as its model is not a grid")

    def pay(self, batch: Trajectories) -> Trajectories:
        """Trajectories that were played while ``is_deferred`` was set, with all that their steps pay.

        Raises:
            UnsupportedError: the environment pays at once (the default).
        """
        raise self._missing("no pay(batch), as it pays at once; check pays_later first")

    def _missing(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{type(self.layer).__name__} has {what}.")


class Adapted(Hooks):
    """A configurable layer that does not derive from our base classes: its own members, and the defaults for the rest.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: Any):
        object.__setattr__(self, "_layer", layer)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_layer", "layer"):
            return object.__getattribute__(self, name)
        layer = object.__getattribute__(self, "_layer")
        return getattr(layer, name) if hasattr(layer, name) else object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._layer, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Adapted, (self._layer,)

    def __repr__(self) -> str:
        return f"Adapted({self._layer!r})"

    @property
    def layer(self) -> Any:
        """The layer itself."""
        return object.__getattribute__(self, "_layer")


def context_observed(env: gym.Env[Any, Any]) -> bool:
    """Whether a layer of ``env`` shows the context: it declares so, or its observations have a part of that name."""
    while True:
        space = env.observation_space
        declared: bool = getattr(env, "context_observed", False)  # any layer of Gymnasium may be among them
        if declared or (isinstance(space, gym.spaces.Dict) and "context" in space.spaces):
            return True
        if not isinstance(env, gym.Wrapper):
            return False
        env = env.env
