r"""Randomised multilevel Monte Carlo over the follower's iterations (paper, section C.2 and Proposition E.8, corrected).

The mathematics. t_k = 2^k iterations of the follower; dF_t is an estimate from its policy after t of them. With k drawn from
p_k = 2^-k / (1 - 2^-(K-1)), k = 1..K-1,

    dF = dF_{t_1} + (dF_{t_{k+1}} - dF_{t_k}) / p_k

has the mean of dF_{t_K}: the sum over k telescopes. One run of the follower from scratch gives all three policies, and stops at
t_{k+1}: on average after 2 (K - 1) / (1 - 2^-(K-1)) iterations instead of 2^K. The three estimates share their random numbers,
so that what the pair has in common cancels; what does not is multiplied by 1/p_k, and the variance is larger than dF_{t_K}'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import check_count, check_instance
from followers import IterativeFollower, TrajectoryOracle
from leaders.gradients.base import Estimator, PolicyEstimator
from leaders.gradients.estimate import Estimate, combine_groups
from leaders.gradients.geometric import GeometricEstimator


class MultilevelEstimator(Estimator):
    """dF_xi/dx as if the follower had made 2^K iterations, at the cost of O(K) of them.

    Args:
        levels: the follower makes 2^K iterations in effect, K in 2..62.
        samples: draws of the geometric estimator, for each of a run's three estimates.
        runs: independent follower runs averaged per estimate; with two or more, a standard error over them is reported.
        inner: another estimator of dF_t than the geometric one, such as ``MonteCarloEstimator(10_000)``; it has its own
            sample size, and ``samples`` is not used.
        regularization: lambda; the follower's if None.

    ``metrics``: ``follower_iterations`` per run.

    Raises:
        OptionError: a value out of range.
    """

    needs_iterative = True

    def __init__(
        self,
        levels: int = 10,
        samples: int = 20_000,
        runs: int = 1,
        inner: PolicyEstimator | None = None,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.levels, self.runs = check_count("levels", levels, 2, 62), check_count("runs", runs)
        if inner is not None:
            check_instance("inner", inner, PolicyEstimator)
        self.inner = GeometricEstimator(samples, regularization=regularization) if inner is None else inner
        self.accepts_loss, self.needs_model = self.inner.accepts_loss, self.inner.needs_model
        weights = 0.5 ** np.arange(1, self.levels)
        self.probabilities = weights / weights.sum()  # p_k, k = 1..K-1

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        self.inner.bind(oracle, loss)

    def take_regularization(self, regularization: float) -> None:
        super().take_regularization(regularization)
        self.inner.take_regularization(regularization)

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        before, draws, iterations = oracle.env_steps, [], 0
        for _ in range(self.runs):
            estimate, made = self._run(oracle, x, context, rng)
            draws.append(estimate)
            iterations += made
        gradient, error = combine_groups([draw.gradient for draw in draws], [1] * self.runs)
        leader_return = sum(draw.leader_return for draw in draws) / self.runs
        metrics = {"follower_iterations": iterations / self.runs}
        model_draws = sum(draw.model_draws for draw in draws)
        return Estimate(gradient, leader_return, oracle.env_steps - before, error, metrics, model_draws)

    def _run(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> tuple[Estimate, int]:
        """One draw, from one run of the follower; and the iterations it made."""
        follower = oracle.follower
        assert isinstance(follower, IterativeFollower)
        k = 1 + int(rng.choice(self.levels - 1, p=self.probabilities))
        run = follower.start(oracle.task(x, context), rng)
        seed = int(rng.integers(2**63))

        estimates: list[Estimate] = []

        def after(level: int) -> Estimate:
            """dF_t for t = 2^level; the run continues to there."""
            if run.iterations < 2**level:
                run.advance(2**level - run.iterations)
            estimates.append(self.inner.estimate_policy(oracle, run.policy(), x, context, np.random.default_rng(seed)))
            return estimates[-1]

        first = after(1)
        lower = first if k == 1 else after(k)
        upper = after(k + 1)
        p, model_draws = self.probabilities[k - 1], sum(estimate.model_draws for estimate in estimates)
        gradient = first.gradient + (upper.gradient - lower.gradient) / p
        leader_return = first.leader_return + (upper.leader_return - lower.leader_return) / p
        return Estimate(gradient, float(leader_return), model_draws=model_draws), run.iterations
