"""Next observations that a wrapped environment's dynamics draw, as a differentiable function of x and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.options import check_count, check_function
from bocmdp_gym.wrappers.functions import Step, StepFunction, as_batch, as_context

#: Relative difference of the reward function from what is paid up to which they agree: single precision inside.
_TOLERANCE = 1e-5


class Draws:
    """`LeaderReward`'s ``draw_transitions``, ``noise_dim`` and ``reward``, and their checks.

    Args:
        draw: (x, observations, actions, noise, context) -> next observations ``(N, ...)``.
        noise_dim: uniform numbers per draw.
        reward: (observations, actions, context) -> the environment's own reward ``(N,)``.
        outcomes: those that the leader's functions take; there must be none.

    Raises:
        OptionError: one of the three is missing or no function, or functions of outcomes.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, Any, Any, Tensor, Any], Tensor] | None,
        noise_dim: int | None,
        reward: Callable[[Any, Any, Any], Tensor] | None,
        outcomes: Sequence[str],
    ):
        given = {"draw_transitions": draw, "noise_dim": noise_dim, "reward": reward}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise OptionError(
                f"{missing[0]} is missing; draw_transitions, noise_dim and reward go together: expectations over next states are "
                "taken for actions that were not taken, too, so that what they pay must be known."
            )
        if outcomes:
            raise OptionError(
                f"the bonus or the leader's reward takes {outcomes[0]}, which draws do not have; leave draw_transitions out and "
                "give log_transitions."
            )
        self._draw = check_function("draw_transitions", draw, "x, observations, actions, noise, context")
        self.noise_dim = check_count("noise_dim", noise_dim, 0)
        check_function("reward", reward, "observations, actions, context")
        self._reward = StepFunction("reward", lambda x, *points: given["reward"](*points))  # type: ignore[misc, operator]

    def __call__(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """Next observations ``(N, ...)``.

        Raises:
            ModelError: something else than a tensor of that shape.
        """
        seen = as_batch(observations)
        following = self._draw(x, seen, as_batch(actions), noise, as_context(context))
        if not isinstance(following, Tensor) or following.shape != seen.shape:
            what = f"shape {tuple(following.shape)}" if isinstance(following, Tensor) else type(following).__name__
            raise ModelError(
                f"draw_transitions returned {what}; expected a torch tensor of next observations {tuple(seen.shape)}, computed "
                "from x by torch operations."
            )
        return following.to(torch.float64)

    def rewards(self, observations: Any, actions: Any, context: Any) -> Tensor:
        """The environment's own rewards ``(N,)``."""
        points = as_batch(observations), as_batch(actions), as_context(context)
        return self._reward(torch.zeros(0), *points, n=len(actions))

    def check(self, steps: Sequence[Step], x: npt.NDArray[np.float64], context: Any, space: gym.spaces.Box) -> None:
        """Let mistakes show at steps of the environment.

        Raises:
            ModelError: a reward that is not what was paid, or draws that leave torch or have a wrong shape.
        """
        seen, actions = ([getattr(step, name) for step in steps] for name in ("observation", "action"))
        told = self.rewards(seen, actions, context).tolist()
        for step, number in zip(steps, told, strict=True):
            if abs(number - step.reward) > _TOLERANCE * (1.0 + abs(step.reward)):
                raise ModelError(
                    f"reward is {number:.8g} at observation {step.observation}, action {step.action}, context {context}, where "
                    f"the environment paid {step.reward:.8g}; expected the same. Where it depends on chance or on the next "
                    "observation, leave draw_transitions out and give log_transitions."
                )
        noise = torch.linspace(0.1, 0.9, len(steps) * self.noise_dim, dtype=torch.float64).reshape(len(steps), self.noise_dim)
        check_leaks(lambda z: {"draw_transitions": self(z, seen, actions, noise, context)}, x, space)
