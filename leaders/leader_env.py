"""`LeaderEnv`: the leader's own seat as a Gymnasium environment, so that any RL or black-box method can lead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP
from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import as_array, as_list, check_choice, check_count, check_number
from followers import Follower, TrajectoryOracle
from followers.environments import check_unchanged
from leaders.branches import Branches
from leaders.coupling import coupling
from leaders.gradients.exact import response_return, values_responses
from leaders.objectives import Objective, as_objective

Array = npt.NDArray[np.float64]
MODES = ("set", "step")


class LeaderEnv(Constructed, gym.Env[Any, Any]):
    r"""The leader acts, the follower responds, and the leader is paid its value.

    ## Action space
    ``Box(-1, 1, (d,), float32)``. ``mode="set"``: the action is x, rescaled to ``bounds``. ``mode="step"``: x moves by
    ``step_size`` times the action, in rescaled units, and stays inside ``bounds``.

    ## Observation space
    ``Box(-1, 1, (d,), float32)``: the current x, rescaled.

    ## Rewards
    F(x) after the follower responded: that of its responses in all contexts, from the tabular model's arrays
    (``value="exact"``), or the mean discounted leader return of ``env_steps`` steps in one drawn context (``"sampled"``; in every
    context, with an ``objective`` that couples them). An
    exact follower starts from scratch for every value, so that equal actions pay equally to the bit; one that learns continues
    from what it has learnt, so that later values profit from earlier training: points to be compared, as those of a generation of
    CMA-ES, are for `values`.

    ## Episode start and end
    Starts at the middle of ``bounds``. ``mode="set"``: terminates after one action. ``mode="step"``: truncated after ``horizon``
    actions.

    ``info`` has the ``x`` that the follower answered; of a `followers.FictitiousPlay`, also its exploitability and rounds.

    ## Arguments
    env, follower: as for `leaders.optimize`.
    bounds: finite (low, high), numbers or arrays ``(d,)``; needed where ``leader_space`` is unbounded.
    mode, step_size, horizon, value, env_steps: see above.
    objective: what is made of the contexts' returns, as for `leaders.optimize`.

    Attributes:
        follower_solves: how often a follower has responded so far.

    Raises:
        OptionError: bounds that are not finite, empty or outside ``leader_space``; an unknown mode or value.
        UnsupportedError: exact values asked of a problem without a tabular model, or of one that wrappers change, or (by
            `value`) of a follower whose policies expose no probabilities.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP | PopulationBOCMDP,
        follower: Follower,
        *,
        bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        mode: Literal["set", "step"] = "set",
        step_size: float = 0.1,
        horizon: int = 20,
        value: Literal["exact", "sampled"] = "exact",
        env_steps: int = 10_000,
        objective: Objective | Callable[[Tensor], Tensor] | None = None,
    ):
        self.oracle = TrajectoryOracle(env, follower)
        space = self.oracle.core.leader_space
        self.low, self.high = _bounds((space.low, space.high) if bounds is None else bounds, space.shape)
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low < self.high).all()):
            raise OptionError("bounds are not finite, or low >= high somewhere; expected bounds=(low, high), e.g. (-3.0, 3.0).")
        if (self.low < space.low).any() or (self.high > space.high).any():
            raise OptionError(
                f"bounds reach outside the leader_space of {type(self.oracle.core).__name__}, {space}; expected bounds inside it."
            )
        self.mode, self.step_size = check_choice("mode", mode, MODES), check_number("step_size", step_size, above=0.0)
        self.horizon, self.env_steps = check_count("horizon", horizon), check_count("env_steps", env_steps)
        known = isinstance(self.oracle.model, TabularBOCMDP) or values_responses(self.oracle)
        if check_choice("value", value, ("exact", "sampled")) == "exact" and not known:
            raise UnsupportedError(
                f"exact values need a tabular model (or another with exact solutions, and an exact follower), and "
                f"{type(self.oracle.core).__name__} has none; use value='sampled'."
            )
        self._is_exact = value == "exact"
        if self._is_exact:
            check_unchanged("LeaderEnv(value='exact')", self.oracle.layers, self.oracle.core)
        self._coupling = coupling(as_objective(objective), self.oracle.core, True, None)
        self.action_space = gym.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        self.follower_solves = 0
        self._position = np.zeros(space.shape)
        self._age = 0

    def to_x(self, position: npt.ArrayLike) -> Array:
        """x for a position in [-1, 1]^d."""
        clipped = np.clip(np.asarray(position, dtype=np.float64), -1.0, 1.0)
        x: Array = self.low + 0.5 * (clipped + 1.0) * (self.high - self.low)
        return x

    def value(self, x: npt.ArrayLike) -> float:
        """The leader's value at x: the objective for black-box methods."""
        if self._is_exact:
            return self._exact_value(x)
        if self._coupling is not None:
            return self._coupling.value([self._sampled_return(x, context) for context in self._coupling.contexts])
        return self._sampled_return(x, self.oracle.sample_context(self.np_random))

    def values(self, points: Sequence[npt.ArrayLike]) -> Array:
        """The leader's values at several x ``(N,)``, to be compared.

        All are from the follower's present state, with the same random numbers (context, training, episodes). The follower
        continues from its answer at the first.

        Warns:
            UserWarning: the follower trains an agent in place (`leaders.branches`).
        """
        found, here, generator = [], self.np_random, self.np_random.spawn(1)[0]
        with Branches(self.oracle.follower) as branches:
            for point in points:
                branches.begin()
                self.np_random = deepcopy(generator)
                found.append(self.value(point))
        self.np_random = here
        return np.array(found)

    def _sampled_return(self, x: npt.ArrayLike, context: Any) -> float:
        """The mean leader return of the follower's response in one context."""
        policy = self.oracle.respond(x, context, self.np_random)
        self.follower_solves += 1
        batch = self.oracle.sample(policy, self.env_steps, self.np_random)
        return float(batch.discounted_returns(self.oracle.core.leader_discount, leader=True).mean())

    def _exact_value(self, x: npt.ArrayLike) -> float:
        """E_xi of the leader's return of the follower's responses, or the objective of these returns."""
        if self.oracle.follower.exact:
            self.oracle.follower.reset()
        probabilities, values = self.oracle.core.context_probabilities, []
        for context in range(len(probabilities)):
            policy = self.oracle.respond(x, context, self.np_random)
            self.follower_solves += 1
            value = response_return(self.oracle, x, context, policy)
            if value is None:
                raise UnsupportedError(
                    f"exact values need action probabilities, and {type(policy).__name__} has none; use value='sampled'."
                )
            values.append(value)
        if self._coupling is not None:
            return self._coupling.value(self._coupling.possible(np.array(values)))
        total = 0.0
        for probability, value in zip(probabilities, values, strict=True):
            total += float(probability) * value
        return total

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start at the middle of the bounds."""
        super().reset(seed=seed)
        self._position, self._age = np.zeros_like(self._position), 0
        return self._position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Choose (or move) x; ``info``: see the class.

        Raises:
            OptionError: an action of the wrong shape, or not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self._position.shape or not np.isfinite(action).all():
            raise OptionError(f"action has shape {action.shape} or is not finite; expected {self._position.shape}.")
        moved = action if self.mode == "set" else self._position + self.step_size * action
        self._position = np.clip(moved, -1.0, 1.0)
        self._age += 1
        x = self.to_x(self._position)
        reward = self.value(x)
        truncated = self.mode == "step" and self._age >= self.horizon
        info: dict[str, Any] = {"x": x}
        answer = self.oracle.last_response
        if answer is not None and self.oracle.follower.populates:
            info |= answer.metrics
        return self._position.astype(np.float32), reward, self.mode == "set", truncated, info


def _bounds(bounds: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Low and high of this shape.

    Raises:
        OptionError: not two numbers, or arrays that broadcast to it.
    """
    pair = as_list(bounds) or []
    low, high = map(as_array, pair) if len(pair) == 2 else (None, None)
    if low is None or high is None or any(one.ndim > 1 or one.shape not in ((), (1,), shape) for one in (low, high)):
        raise OptionError(f"bounds is {bounds!r}; expected (low, high), each a number or an array of shape {shape}.")
    return np.broadcast_to(low, shape).copy(), np.broadcast_to(high, shape).copy()
