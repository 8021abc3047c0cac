"""`check_gradient`: does an estimator estimate the hypergradient?"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym import TabularBOCMDP, configurable
from bocmdp_gym.arguments import known_options
from bocmdp_gym.errors import CheckError
from bocmdp_gym.options import check_count, check_number
from followers import Follower, SoftPolicyIteration
from leaders.compare import compare_gradients
from leaders.gradients import Estimator, Loss
from leaders.leaders import Leader
from leaders.run_arguments import check_estimator

#: Estimates that differ by less than this, relative to the gradient, count as deterministic.
_DETERMINISTIC = 1e-8


@known_options()
def check_gradient(
    estimator: Estimator | Leader,
    env: gym.Env[Any, Any] | TabularBOCMDP | None = None,
    follower: Follower | None = None,
    *,
    x: Any = None,
    repeats: int = 200,
    tolerance: float = 1e-6,
    standard_errors: float = 5.0,
    bias: float = 0.0,
    loss: Loss | None = None,
    seed: int = 0,
) -> None:
    """Check an estimator against the exact hypergradient, in every context of a tabular problem.

    A deterministic estimator must be within ``tolerance`` of it; the mean of a stochastic one within ``standard_errors`` in
    every coordinate, and that mean must be sharp enough for the test to mean something.

    Args:
        estimator: an estimator, or a leader (of which the estimator is used).
        env: where; a small random model in which x moves everything if None.
        follower: who responds; the exact follower with lambda = 1 if None.
        x: where, ``(d,)``; a fixed random point if None.
        repeats: independent estimates per context.
        tolerance: allowed relative error of a deterministic estimator.
        standard_errors: allowed deviation of a stochastic one's mean.
        bias: relative error of the mean that is forgiven on top, for estimators with a known bias.
        loss, seed: as for `leaders.optimize`.

    Raises:
        CheckError: naming the context, and by how much the estimate is off.
    """
    check_estimator("estimator", estimator)
    seed = check_count("seed", seed, 0)
    tolerance, bias = check_number("tolerance", tolerance, 0.0), check_number("bias", bias, 0.0)
    standard_errors = check_number("standard_errors", standard_errors, 0.0)
    env = gym.make("bocmdp/RandomMDP-v0", n_states=6, n_actions=3, discount=0.7) if env is None else env
    follower = SoftPolicyIteration(1.0) if follower is None else follower
    core: Any = env if isinstance(env, TabularBOCMDP) else configurable(env)
    model: TabularBOCMDP = env if isinstance(env, TabularBOCMDP) else core.model
    x = 0.2 * np.random.default_rng(seed).standard_normal(model.leader_dim) if x is None else x
    for context in range(model.n_contexts):
        found = compare_gradients(
            env, {"it": estimator}, x, context, follower=follower, repeats=repeats, seed=seed, loss=loss, show=False
        )
        row, size = found["it"], float(found.exact.norm())
        where = f"context {context}: the mean of {repeats} estimates is off by {row.relative_bias:.3g} of the exact gradient"
        if row.spread <= _DETERMINISTIC:
            if row.relative_bias > tolerance + bias:
                raise CheckError(f"{where}; a deterministic estimator is allowed {tolerance + bias:.3g}.")
            continue
        if row.relative_bias > bias and row.deviation > standard_errors:
            raise CheckError(
                f"{where}, {row.deviation:.1f} standard errors in its worst coordinate; allowed {standard_errors:g}."
            )
        if row.error > 0.5 * size and bias == 0.0:
            raise CheckError(
                f"context {context}: the mean's standard error is {row.error / size:.0%} of the exact gradient, too much to "
                "decide; raise repeats or the estimator's own batch."
            )
