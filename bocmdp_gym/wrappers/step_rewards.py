"""A fast twin of a leader's functions at one step: NumPy in place of torch, whose calls are most of the cost of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from bocmdp_gym.errors import ModelError
from bocmdp_gym.options import check_function
from bocmdp_gym.wrappers.functions import Step, StepFunction, as_batch, as_context, named_outcomes

#: A function (x (d,), observation, action, context) -> (bonus, leader_reward), in NumPy or plain Python.
StepRewardsFunction = Callable[..., tuple[float, float]]
_ARGUMENTS = "x, observation, action, context"
#: Relative difference from which twins are no twins; single precision inside is let through.
_TOLERANCE = 1e-5


class StepRewards:
    """The twin, and its checks.

    Args:
        function: the bonus and the leader's reward of one step.

    Attributes:
        outcomes: what it takes besides (`bocmdp_gym.wrappers.functions.OUTCOMES`).

    Raises:
        OptionError: no function, or one with a parameter that nothing is known for.
    """

    def __init__(self, function: StepRewardsFunction):
        self._function = check_function("step_rewards", function, _ARGUMENTS)
        self.outcomes = named_outcomes("step_rewards", function, len(_ARGUMENTS.split(",")))

    def __call__(
        self, x: npt.NDArray[np.float64], observation: Any, action: Any, context: Any, outcomes: Mapping[str, Any]
    ) -> tuple[float, float]:
        """The bonus and the leader's reward.

        Raises:
            ModelError: it returned something else than two finite numbers.
        """
        value = self._function(x, observation, action, context, **{name: outcomes[name] for name in self.outcomes})
        try:
            bonus, leader_reward = value
            numbers = float(bonus), float(leader_reward)
        except (TypeError, ValueError):
            raise ModelError(f"step_rewards returned {value!r}; expected two numbers, (bonus, leader_reward).") from None
        if not (isfinite(numbers[0]) and isfinite(numbers[1])):
            raise ModelError(
                f"step_rewards is {numbers} at observation {observation}, action {action}, context {context}, x = {x.tolist()}; "
                "expected finite numbers."
            )
        return numbers

    def check(
        self,
        bonus: StepFunction,
        leader_reward: StepFunction,
        steps: Sequence[Step],
        x: npt.NDArray[np.float64],
        context: Any,
        space: gym.spaces.Box,
    ) -> None:
        """Compare it with the functions that it stands for, at steps of the environment, at x and near it.

        Raises:
            ModelError: they differ.
        """
        near = x + 0.1 * np.random.default_rng(0).uniform(0.5, 1.0, len(x)) * np.minimum(space.high - space.low, 1.0)
        for leader in (x, np.clip(near, space.low, space.high)):
            for step in steps:
                given = step.observation, step.action, context, step.single
                found = self(leader, *given)
                points = as_batch([step.observation]), as_batch([step.action]), as_context(context)
                for number, function in zip(found, (bonus, leader_reward), strict=True):
                    with torch.no_grad():
                        wanted = float(function.raw(torch.tensor(leader), *points, n=1, outcomes=step.outcomes))
                    if isfinite(wanted) and abs(number - wanted) > _TOLERANCE * (1.0 + abs(wanted)):
                        raise ModelError(
                            f"step_rewards gives {number:.8g} for {function.name} at observation {step.observation}, action "
                            f"{step.action}, context {context}, x = {leader.tolist()}, and {function.name} itself {wanted:.8g}; "
                            "expected the same."
                        )
