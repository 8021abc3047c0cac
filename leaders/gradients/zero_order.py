r"""Zero-order gradients (paper, Algorithm 8, corrected): differences of the leader's return along random directions.

The mathematics. With z ~ N(0, I) and u > 0,

    one-sided  (F(x + u z) - F(x)) z / u        two-sided  (F(x + u z) - F(x - u z)) z / (2 u)

both have the mean dF_u/dx, the gradient of the smoothed return F_u(x) = E F(x + u z), which tends to dF/dx as u does to 0. Alg. 8
takes u_t = C/(t + 1) in iteration t. F is the return of the follower's response, so nothing needs to be known of model or
follower: any environment and any follower will do. Several directions are averaged.

A follower that learns is asked at all points of an estimate from the state it had before the first, and with the same random
numbers: where x changes nothing, neither does F, and the difference is 0. It continues from its answer at the first point, which
is x itself (one-sided) or the first x + u z (two-sided), where z is symmetric, so that training there pulls to no side.

An objective Phi(F_1, ..., F_C) of all contexts' returns is such an F itself: its differences are taken, along directions that all
contexts share, and no derivative of Phi is needed. Where contexts are drawn, each one's differences are weighted instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.losses import Loss, evaluate_loss
from bocmdp_gym.options import check_count, check_flag, check_number
from bocmdp_gym.saved_state import count_entry
from followers import Policy, TrajectoryOracle
from followers.environments import check_unchanged
from leaders.branches import Branches
from leaders.gradients.base import Array, Estimator, policy_table
from leaders.gradients.estimate import Estimate, WeightedContexts, combine_groups
from leaders.gradients.exact import policy_return, response_return, values_responses


class ZeroOrderEstimator(Estimator):
    """Differences of returns along random directions; needs no model and no lambda.

    Args:
        smoothing: C, the size of the steps aside: u_t = C/(t + 1) at the t-th x asked for.
        decay: whether u_t falls with t; False: u = C throughout, which suits sampled returns (their noise is divided by u).
        directions: directions averaged per estimate; with two or more, a standard error over them is reported.
        two_sided: differences F(x + u z) - F(x - u z) instead of F(x + u z) - F(x): two responses per direction instead of
            one, plus one; even orders of the expansion in u cancel.
        exact: returns from the model's arrays (needs a tabular model and action probabilities; or another that solves itself, and
            an exact follower) instead of ``env_steps`` sampled steps each; None: where the follower plans with such a model.
        env_steps: steps per sampled return.
        common_random_numbers: all responses and returns of an estimate draw the same random numbers, episode by episode.
        regularization: lambda, for evaluation only; the follower's if None.

    ``metrics``: ``smoothing``, those of the answer at the first point, and ``follower_training_steps`` of all points together.

    Points x + u z beyond a bounded ``leader_space`` are moved to its nearest point; near the border that biases the estimate.

    Raises:
        OptionError: a value out of range.
    """

    accepts_loss = True
    needs_regularization = needs_equilibrium = False
    replays = True

    def __init__(
        self,
        smoothing: float = 1.0,
        directions: int = 1,
        two_sided: bool = False,
        decay: bool = True,
        exact: bool | None = None,
        env_steps: int = 10_000,
        common_random_numbers: bool = True,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.smoothing = check_number("smoothing", smoothing, above=0.0, note=" (the paper's C)")
        self.decay, self.two_sided = check_flag("decay", decay), check_flag("two_sided", two_sided)
        self.directions = check_count("directions", directions)
        self.env_steps = check_count("env_steps", env_steps)
        self.exact = None if exact is None else check_flag("exact", exact)
        self.common_random_numbers = check_flag("common_random_numbers", common_random_numbers)
        self._points = 0  # how many x were asked for
        self._last: bytes | None = None

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        self._points, self._last = 0, None
        tabular = isinstance(oracle.model, TabularBOCMDP)
        exact = self.exact
        if exact is None:
            exact = loss is not None or (tabular and oracle.follower.plans) or values_responses(oracle)
        if exact and not tabular and (loss is not None or not values_responses(oracle)):
            wanted = "a loss f(x, policy, context) reads the policy as a table" if loss else "exact returns are a model's own"
            raise UnsupportedError(
                f"{wanted}, and {type(oracle.core).__name__} has no tabular model; use sampled returns of the leader's reward, "
                "ZeroOrder(exact=False) without a loss."
            )
        if loss is not None and not exact:
            raise UnsupportedError(
                "a loss f(x, policy, context) reads the policy as a table and cannot be sampled; use ZeroOrder(exact=True)."
            )
        if exact:
            check_unchanged("ZeroOrder(exact=True)", oracle.layers, oracle.core)
        self._is_exact, self.replays_steps = exact, not exact
        space = oracle.core.leader_space
        bounded = bool(np.isfinite(space.low).any() or np.isfinite(space.high).any())
        self._bounds = (space.low, space.high) if bounded else None

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        u = self._smoothing_at(x)
        return self._differences(oracle, x, u, self._evaluation(oracle, context, rng), rng)

    @with_gradients
    def estimate_coupled(
        self,
        oracle: TrajectoryOracle,
        x: Tensor,
        contexts: WeightedContexts,
        objective: Callable[[Sequence[float]], float],
        rng: np.random.Generator,
    ) -> Estimate:
        u = self._smoothing_at(x)
        returns = [self._evaluation(oracle, context, rng) for context, _ in contexts]
        return self._differences(oracle, x, u, lambda point: objective([one(point) for one in returns]), rng)

    def _differences(
        self, oracle: TrajectoryOracle, x: Tensor, u: float, evaluate: Callable[[Array], float], rng: np.random.Generator
    ) -> Estimate:
        """Differences of a function of x, at distance u."""
        before, gradients, returns, at = oracle.env_steps, [], [], x.detach().numpy()
        metrics: dict[str, float] = {}
        with Branches(oracle.follower) as branches:

            def value(point: Array) -> float:
                branches.begin()
                returns.append(evaluate(point))
                if len(returns) == 1 and oracle.last_response is not None:
                    metrics.update(oracle.last_response.metrics)
                return returns[-1]

            here = None if self.two_sided else value(at)
            for _ in range(self.directions):
                z = rng.standard_normal(at.shape)
                there = value(self._inside(at + u * z))
                if here is None:
                    slope = (there - value(self._inside(at - u * z))) / (2.0 * u)
                else:
                    slope = (there - here) / u
                gradients.append(torch.from_numpy(slope * z))
            if here is not None:
                returns = [here]
        gradient, error = combine_groups(gradients, [1] * self.directions)
        metrics["smoothing"] = u
        if oracle.training_steps:
            metrics["follower_training_steps"] = float(oracle.training_steps)
        return Estimate(gradient, sum(returns) / len(returns), oracle.env_steps - before, error, metrics)

    def state(self) -> dict[str, Any]:
        return {"points": self._points, "last": None if self._last is None else self._last.hex()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._points, self._last = count_entry(state, "points"), None if state["last"] is None else bytes.fromhex(state["last"])

    def _smoothing_at(self, x: Tensor) -> float:
        """u_t."""
        key = x.numpy().tobytes()
        if key != self._last:
            self._points, self._last = self._points + 1, key
        return self.smoothing / self._points if self.decay else self.smoothing

    def _inside(self, x: Array) -> Array:
        return x if self._bounds is None else np.clip(x, *self._bounds)

    def _evaluation(self, oracle: TrajectoryOracle, context: Any, rng: np.random.Generator) -> Callable[[Array], float]:
        """F_xi as a function of x, for one estimate."""
        share = self.common_random_numbers and not (self._is_exact and oracle.follower.exact)
        seed = int(rng.integers(2**63)) if share else None

        def evaluate(x: Array) -> float:
            training, episodes = (rng, rng) if seed is None else np.random.default_rng(seed).spawn(2)
            policy = oracle.respond(x, context, training)
            if self._is_exact:
                return self._exact_return(oracle, x, context, policy)
            batch = oracle.sample(policy, self.env_steps, episodes, paired=share)
            return float(batch.discounted_returns(oracle.core.leader_discount, leader=True).mean())

        return evaluate

    def _exact_return(self, oracle: TrajectoryOracle, x: Array, context: int, policy: Policy) -> float:
        if not isinstance(oracle.model, TabularBOCMDP):
            value = response_return(oracle, x, context, policy)
            assert value is not None
            return value
        table: Array = policy_table(oracle, policy, "ZeroOrder(exact=True)")
        if self.loss is not None:
            return -float(evaluate_loss(self.loss, torch.from_numpy(x.copy()), torch.from_numpy(table), context))
        return policy_return(oracle.configure_for(policy).arrays(context), table)
