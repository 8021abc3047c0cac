"""The exact follower of linear-quadratic problems: a Riccati equation."""

from __future__ import annotations

from collections.abc import Callable
from math import e, log, pi
from typing import Any

import numpy as np
import torch

from bocmdp_gym import LinearQuadraticBOCMDP, LinearQuadraticSolution
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.options import check_regularization
from bocmdp_gym.validation import check_discount
from followers.base import Follower, Task
from followers.environments import AnyEnv, check_unchanged, inspect_layers, make_single, model_of
from followers.policies import Array, Policy


class LinearGaussianPolicy(Policy):
    """a ~ N(-K s, Lambda): what an entropy-regularised follower does in a linear-quadratic problem.

    Args:
        solution: K, Lambda, and the values V(s) = -s'P s + v, of one context.
        leader, context: the x and xi it answers.
        bounds: of the actions that the environment takes, ``(m,)`` each, and their type; actions beyond them are moved onto them.
        read: reads the states in what is seen; None where they are the same.

    Attributes:
        gain: K ``(m, n)``.
        covariance: Lambda ``(m, m)``.
        entropy: H, the differential entropy of the actions, the same in every state; may be negative.
    """

    batched = True

    def __init__(
        self,
        solution: LinearQuadraticSolution,
        leader: Array,
        context: int,
        bounds: tuple[Array, Array],
        read: Callable[[Any], Any] | None = None,
    ):
        self.leader, self.context, self._read = leader, context, read
        self._quadratic, self._constant = solution.value.numpy(), float(solution.constant)
        self.gain, self.covariance = solution.gain.numpy(), solution.covariance.numpy()
        self._factor = np.linalg.cholesky(self.covariance)
        self._log_scale = float(np.log(np.diag(self._factor)).sum())
        self.entropy = 0.5 * len(self.gain) * log(2.0 * pi * e) + self._log_scale
        self._low, self._high = bounds

    def _states(self, observations: Any) -> Array:
        own = observations if self._read is None else self._read(observations)
        states: Array = np.asarray(own, dtype=np.float64)
        return states

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return self.act_batch(observation, rng)

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        states = self._states(observations)
        normal = rng.standard_normal((*states.shape[:-1], len(self.gain)))
        actions = normal @ self._factor.T - states @ self.gain.T
        return np.clip(actions, self._low, self._high).astype(self._low.dtype)

    def entropies(self, observations: Any) -> Array:
        return np.full(len(observations), self.entropy)

    def log_probabilities(self, observations: Any, actions: Any) -> Array:
        """Log densities ``(N,)`` of actions ``(N, m)`` in states ``(N, n)``."""
        deviations = np.asarray(actions, dtype=np.float64) + self._states(observations) @ self.gain.T
        standardised = np.linalg.solve(self._factor, deviations.T)
        densities: Array = -0.5 * np.square(standardised).sum(0) - 0.5 * len(self.gain) * log(2.0 * pi) - self._log_scale
        return densities

    def values(self, observations: Any) -> Array:
        """The follower's regularised values V ``(N,)`` of states ``(N, n)``."""
        states = self._states(observations)
        values: Array = self._constant - ((states @ self._quadratic) * states).sum(-1)
        return values


class LinearQuadratic(Follower):
    """Solves a linear-quadratic problem (`bocmdp_gym.LinearQuadraticBOCMDP`) exactly, entropy included, without samples.

    It answers for the model: a bound on actions or states that an environment adds is not anticipated.

    Args:
        regularization: lambda > 0.
        discount: gamma, taken from the environment; one that contradicts it is an error.

    Raises:
        RegularizationError: lambda is not positive and finite.
        DiscountError: a discount outside [0, 1] (or, when the oracle is made, another than the environment's).
        UnsupportedError: when the oracle is made: the environment's model is not linear-quadratic, or wrappers change it.
    """

    exact = anneals = True
    exposes_probabilities = False

    def __init__(self, regularization: float = 0.1, *, discount: float | None = None):
        self.regularization: float = check_regularization(regularization)
        self.discount = None if discount is None else check_discount(discount)

    def bind(self, env: AnyEnv, core: Any) -> None:
        super().bind(env, core)
        if not isinstance(model_of(core), LinearQuadraticBOCMDP):
            raise UnsupportedError(
                f"{type(self).__name__} solves linear-quadratic problems, and {type(core).__name__} is none: its model is "
                f"{model_of(core)!r}. Use SoftPolicyIteration where the model is a TabularBOCMDP, or a learning follower "
                "(SB3Follower)."
            )
        one, _ = make_single(env)
        check_unchanged(type(self).__name__, inspect_layers(env, core, one), core, plain=True)

    def respond(self, task: Task, rng: np.random.Generator) -> LinearGaussianPolicy:
        """The optimal policy."""
        del rng
        model, space = task.core.model, task.core.action_space
        with torch.no_grad():
            solution = model.best_response(task.leader, self.regularization, task.context, leader_share=task.leader_share)
        return LinearGaussianPolicy(solution, task.leader, task.context, (space.low, space.high), task.read)
