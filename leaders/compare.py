"""`compare_gradients`: how far gradient estimators are from the exact hypergradient at one x, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import ContextError, OptionError, UnsupportedError
from bocmdp_gym.options import check_array, check_count, check_flag
from bocmdp_gym.validation import check_context, check_leader
from followers import Follower, TrajectoryOracle
from leaders.contexts import every_context
from leaders.gradients import Estimator, ExactEstimator, Loss
from leaders.gradients.estimate import WeightedContexts
from leaders.leaders import Leader
from leaders.run_arguments import check_estimator, check_options


@dataclass(frozen=True)
class ComparedGradient(Constructed):
    """What one estimator's repeats showed.

    Attributes:
        mean: of the repeats, ``(d,)``.
        standard_error: of that mean, ``(d,)``.
        bias: Euclidean norm of mean - exact; what it is beyond `error` is bias, the rest may be noise.
        relative_bias: the same, relative to the exact gradient's norm.
        error: Euclidean norm of `standard_error`.
        spread: root mean square distance of one estimate from the mean, relative to the exact gradient's norm.
        deviation: the largest coordinate of abs(mean - exact), in its standard errors; beyond 4 or so it is bias.
        env_steps, model_draws, follower_iterations, seconds: per estimate; ``follower_iterations`` is NaN where none are
            reported.
    """

    mean: Tensor
    standard_error: Tensor
    bias: float
    relative_bias: float
    error: float
    spread: float
    deviation: float
    env_steps: float
    model_draws: float
    follower_iterations: float
    seconds: float


#: Columns of the printed table: header, attribute, format.
_COLUMNS = (
    ("bias", "bias", "10.3g"),
    ("relative", "relative_bias", "9.2%"),
    ("std. error", "error", "10.3g"),
    ("deviation", "deviation", "9.1f"),
    ("spread", "spread", "9.2%"),
    ("env steps", "env_steps", "10.3g"),
    ("model draws", "model_draws", "11.3g"),
    ("follower it.", "follower_iterations", "12.3g"),
    ("seconds", "seconds", "10.2e"),
)


@dataclass(frozen=True)
class GradientComparison(Constructed):
    """What `compare_gradients` found; printing it shows the table.

    Attributes:
        exact: the gradient everything is compared with, ``(d,)``.
        rows: one `ComparedGradient` per estimator, by name.
        repeats: estimates made by each.
    """

    exact: Tensor
    rows: dict[str, ComparedGradient]
    repeats: int

    def __getitem__(self, name: str) -> ComparedGradient:
        return self.rows[name]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [" " * width + "".join(f"  {header:>{int(form.split('.')[0])}}" for header, _, form in _COLUMNS)]
        for name, row in self.rows.items():
            lines.append(f"{name:{width}}" + "".join(f"  {getattr(row, field):{form}}" for _, field, form in _COLUMNS))
        norm = float(self.exact.norm())
        return "\n".join([*lines, f"{self.repeats} repeats; the exact gradient has norm {norm:.4g}."])


@known_options()
def compare_gradients(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    estimators: Mapping[str, Estimator | Leader],
    x: Any,
    context: Any = None,
    *,
    follower: Follower,
    repeats: int = 20,
    seed: int = 0,
    loss: Loss | None = None,
    exact: Tensor | None = None,
    show: bool = True,
) -> GradientComparison:
    """Bias, standard error and cost of several estimators at one x.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`.
        estimators: estimators, or leaders (of which the estimator is used), by name.
        x: where, ``(d,)``.
        context: xi, for dF_xi/dx; None: all of them, for dF/dx (finitely many contexts).
        follower: who responds. It is reset before each estimator's repeats.
        repeats: independent estimates of each, at least 2. Timing leaves out a first one that warms up.
        seed: of all randomness; every estimator starts from it.
        loss: as for `leaders.optimize`.
        exact: what to compare with, ``(d,)``; the model's exact gradient under the follower's optimum if None.
        show: print the table.

    Raises:
        OptionError: fewer than two repeats, no estimators, or settings an estimator cannot work with.
        UnsupportedError: an estimator cannot work here, or there is no model to take the exact gradient from.
        ContextError: a context outside ``context_space``, or None where there are infinitely many.
    """
    repeats, seed, show = check_count("repeats", repeats, 2), check_count("seed", seed, 0), check_flag("show", show)
    check_options(loss=loss)
    if not isinstance(estimators, Mapping):
        raise OptionError(f"estimators is {estimators!r}; expected a dict by name, e.g. {{'exact': leaders.ExactGradient()}}.")
    if not estimators:
        raise OptionError("estimators is empty; expected at least one by name, e.g. {'exact': leaders.ExactGradient()}.")
    named = {name: check_estimator(f"estimator {name!r}", one) for name, one in estimators.items()}
    oracle = TrajectoryOracle(env, follower)
    point = torch.tensor(check_leader(x, oracle.core.leader_space))
    if exact is not None:
        exact = torch.from_numpy(check_array("exact", exact, (len(point),)))
    contexts = _contexts(oracle, context)
    if exact is None:
        if not isinstance(oracle.model, TabularBOCMDP):
            raise UnsupportedError(
                f"{type(oracle.core).__name__} has no tabular model to take the exact gradient from; pass what to compare with "
                "as exact=."
            )
        lambdas = (e.requested_regularization for e in named.values() if e.requested_regularization is not None)
        reference = ExactEstimator(next(lambdas, None) if follower.regularization is None else None)
        reference.bind(oracle, loss)
        rng = np.random.default_rng(seed)
        exact = sum((p * reference.estimate(oracle, point, c, rng).gradient for c, p in contexts), torch.zeros_like(point))
    rows = {name: _repeat(env, follower, one, point, contexts, repeats, seed, loss, exact) for name, one in named.items()}
    comparison = GradientComparison(exact, rows, repeats)
    if show:
        print(comparison)
    return comparison


def _contexts(oracle: TrajectoryOracle, context: Any) -> WeightedContexts:
    """The contexts to estimate in, with their weights."""
    if context is not None:
        return [(check_context(context, oracle.core.context_space), 1.0)]
    every = every_context(oracle.core)
    if every is None:
        raise ContextError(f"{oracle.core.context_space} has no finite list of contexts to average over; pass one context.")
    return every


def _repeat(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    follower: Follower,
    estimator: Estimator,
    x: Tensor,
    contexts: WeightedContexts,
    repeats: int,
    seed: int,
    loss: Loss | None,
    exact: Tensor,
) -> ComparedGradient:
    """One estimator's row."""
    warm_up = TrajectoryOracle(env, follower)
    estimator.bind(warm_up, loss)
    estimator.estimate(warm_up, x, contexts[0][0], np.random.default_rng(seed))
    oracle = TrajectoryOracle(env, follower)
    estimator.bind(oracle, loss)
    rng = np.random.default_rng(seed)
    draws, model_draws, iterations = [], 0, 0.0
    began = perf_counter()
    for _ in range(repeats):
        draw = torch.zeros_like(x)
        for context, probability in contexts:
            estimate = estimator.estimate(oracle, x, context, rng)
            draw += probability * estimate.gradient
            model_draws += estimate.model_draws
            iterations += estimate.metrics.get("follower_iterations", np.nan)
        draws.append(draw)
    seconds = (perf_counter() - began) / repeats
    stacked = torch.stack(draws)
    mean, error = stacked.mean(0), stacked.std(0) / repeats**0.5
    gap, norm = (mean - exact).abs(), float(exact.norm())
    # an estimator without noise still rounds
    deviation = float((gap / torch.clamp(torch.maximum(error, 1e-9 * exact.abs().max()), min=1e-300)).max())
    return ComparedGradient(
        mean=mean,
        standard_error=error,
        bias=float(gap.norm()),
        relative_bias=float(gap.norm()) / norm if norm else float("nan"),
        error=float(error.norm()),
        spread=float((stacked - mean).square().sum(-1).mean().sqrt()) / norm if norm else float("nan"),
        deviation=deviation,
        env_steps=oracle.env_steps / repeats,
        model_draws=model_draws / repeats,
        follower_iterations=iterations / repeats,
        seconds=seconds,
    )
