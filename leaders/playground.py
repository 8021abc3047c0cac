"""`Playground`: a problem that one plays with by hand: x, what both sides get at it exactly, a picture, and gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.validation import check_leader
from followers import TrajectoryOracle
from leaders.contexts import every_context
from leaders.report.outcomes import Answers, answers
from leaders.run_arguments import generator
from leaders.settings import RunSettings
from leaders.video import Frame, pictured, snapshot

Array = npt.NDArray[np.float64]
#: Steps of the follower before the picture is taken, at most.
_STEPS = 60
#: Times that a step is halved, at most; then x stays.
_HALVINGS = 8


@dataclass(frozen=True)
class View:
    """What both sides get at one x: the mean of the leader's returns, and the two returns in every context ``(C,)``."""

    leader_return: float
    leader: Array
    follower: Array


class Playground:
    """A run's environment at an x that anybody may move.

    Args:
        settings: of a run; its environment, lambda, learning rate and optimizer are used, and its seed for the first x.

    Attributes:
        x: where it is ``(d,)``.
        low, high: how far each component is worth moving: the space of x, or 5 to either side of the start.
        n_contexts: how many contexts there are, of positive probability.

    Raises:
        UnsupportedError: an environment without a tabular model of its own, whose follower's exact answer is not known.
    """

    def __init__(self, settings: RunSettings):
        settings = replace(settings, leader="exact", estimator=None, follower="soft-policy-iteration")
        self._shown: Any = None
        with suppress(UnsupportedError):  # then there is no picture
            self._shown = pictured(settings)
        self._oracle = TrajectoryOracle(self._shown or settings.make_env(), settings.make_follower())
        core, model = self._oracle.core, self._oracle.model
        if not isinstance(model, TabularBOCMDP):
            raise UnsupportedError(
                f"{settings.env_id} has no tabular model, so the follower's exact answer is not known; play with one that has."
            )
        self._regularization = settings.regularization
        self._leader = settings.make_leader()
        self._leader.estimator.bind(self._oracle)
        self._solver, self._space, self._contexts = WarmSolver(), core.leader_space, every_context(core) or []
        self._iterations, self.n_contexts = settings.iterations, len(self._contexts)
        self.start = core.initial_leader(generator(settings.seed))
        self.low = np.where(np.isfinite(self._space.low), self._space.low, self.start - 5.0)
        self.high = np.where(np.isfinite(self._space.high), self._space.high, self.start + 5.0)
        self._answered: tuple[Array, Answers] | None = None
        self.move(self.start)

    @property
    def x(self) -> Array:
        """Where it is ``(d,)``."""
        return self._x.detach().numpy().copy()

    def outlines(self) -> Sequence[Array] | None:
        """Where the components of x lie on a map (`bocmdp_gym.Hooks.leader_outlines`); None: nowhere."""
        outlines: Sequence[Array] | None = self._oracle.core.leader_outlines()
        return outlines

    def move(self, x: npt.ArrayLike) -> None:
        """Put x somewhere.

        Raises:
            LeaderParameterError: outside its space.
        """
        self._x: Tensor = self._leader.update.start(torch.tensor(check_leader(x, self._space)), self._iterations, self._space)

    def step(self) -> None:
        """One step of exact gradient ascent on the mean of the leader's returns, halved while it leads to a lower one."""
        rng, before, least = generator(0), self._x.detach().clone(), self.look().leader_return
        gradients = [p * self._leader.estimate(self._oracle, self._x.detach(), c, rng) for c, p in self._contexts]
        self._leader.update.step(self._x, torch.stack(gradients).sum(0))
        change = self._x.detach() - before
        for halvings in range(1, _HALVINGS + 1):
            if self.look().leader_return >= least:
                return
            with torch.no_grad():
                self._x.copy_(before + 0.5**halvings * change if halvings < _HALVINGS else before)

    def look(self) -> View:
        """What both sides get at x."""
        shares: Any = self._oracle.core.model.context_probabilities
        leader, follower = self._answers().returns
        return View(float(np.asarray(shares) @ leader), leader, follower)

    def picture(self, context: int = 0) -> Frame | None:
        """The follower at work at x, after 60 steps at most, in one context; None where there are no pictures."""
        if self._shown is None:
            return None
        name, _ = self._contexts[context]
        policy = self._oracle.task(self.x, name).tabular_policy(self._answers().policies[name])
        return snapshot(self._shown, self.x, name, policy, generator(0), _STEPS)

    def _answers(self) -> Answers:
        """The follower's answers at x, worked out once for each x."""
        x = self.x
        if self._answered is None or not np.array_equal(self._answered[0], x):
            self._answered = x, answers(self._oracle, x, self._regularization, self._solver)
        return self._answered[1]
