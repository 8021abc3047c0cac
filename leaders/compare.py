"""`compare_gradients`: how far gradient estimators are from the hypergradient at one x, and what they cost."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import BOCMDPError, ContextError, OptionError, RegularizationError, UnsupportedError
from bocmdp_gym.options import check_array, check_choice, check_count, check_flag, check_number, check_regularization
from bocmdp_gym.validation import check_context, check_leader
from followers import Follower, TrajectoryOracle
from leaders.contexts import every_context
from leaders.gradients import AutoEstimator, Estimator, ExactEstimator, Loss
from leaders.gradients.estimate import WeightedContexts
from leaders.leaders import Leader
from leaders.reference import difference_gradient
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
        relative_error: root mean square distance of one estimate from the exact gradient, relative to its norm.
        cosine: mean cosine of the angle between one estimate and the exact gradient.
        deviation: the largest coordinate of abs(mean - exact), in its standard errors (that of the reference included); beyond 4
            or so it is bias.
        env_steps, model_draws, training_steps, follower_iterations, seconds: per estimate; ``training_steps`` are the follower's
            own, ``follower_iterations`` is NaN where none are reported.
    """

    mean: Tensor
    standard_error: Tensor
    bias: float
    relative_bias: float
    error: float
    spread: float
    relative_error: float
    cosine: float
    deviation: float
    env_steps: float
    model_draws: float
    training_steps: float
    follower_iterations: float
    seconds: float


#: Columns of the printed table: header, attribute, format.
_COLUMNS = (
    ("bias", "bias", "10.3g"),
    ("relative", "relative_bias", "9.2%"),
    ("std. error", "error", "10.3g"),
    ("deviation", "deviation", "9.1f"),
    ("spread", "spread", "9.2%"),
    ("cosine", "cosine", "7.3f"),
    ("env steps", "env_steps", "10.3g"),
    ("model draws", "model_draws", "11.3g"),
    ("follower it.", "follower_iterations", "12.3g"),
    ("seconds", "seconds", "10.2e"),
)


@dataclass(frozen=True)
class GradientComparison(Constructed):
    """What `compare_gradients` found; printing it shows the table.

    Attributes:
        exact: the gradient everything is compared with, ``(d,)``: the reference.
        rows: one `ComparedGradient` per estimator, by name.
        repeats: estimates made by each.
        exact_error: the reference's standard error ``(d,)``; 0 where it has none.
        source: where the reference is from: "exact", "differences" or "given".
        left_out: estimators of the registry that cannot work here, by name, with the reason.
    """

    exact: Tensor
    rows: dict[str, ComparedGradient]
    repeats: int
    exact_error: Tensor
    source: str
    left_out: dict[str, str]

    def __getitem__(self, name: str) -> ComparedGradient:
        return self.rows[name]

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        lines = [" " * width + "".join(f"  {header:>{int(form.split('.')[0])}}" for header, _, form in _COLUMNS)]
        for name, row in self.rows.items():
            lines.append(f"{name:{width}}" + "".join(f"  {getattr(row, field):{form}}" for _, field, form in _COLUMNS))
        norm, error = float(self.exact.norm()), float(self.exact_error.norm())
        said = {"exact": "the exact gradient has", "given": "the gradient given has"}.get(self.source, "central differences have")
        noise = f", standard error {error:.2g}" if error else ""
        lines.append(f"{self.repeats} repeats; {said} norm {norm:.4g}{noise}.")
        return "\n".join([*lines, *(f"{name} is left out: {reason}" for name, reason in self.left_out.items())])


@known_options()
def compare_gradients(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    estimators: Mapping[str, Estimator | Leader] | None,
    x: Any,
    context: Any = None,
    *,
    follower: Follower,
    repeats: int = 20,
    seed: int = 0,
    loss: Loss | None = None,
    exact: Tensor | None = None,
    reference: Literal["exact", "differences"] | None = None,
    difference: float | None = None,
    difference_steps: int = 10_000,
    difference_repeats: int = 10,
    env_steps: int | None = None,
    regularization: float | None = None,
    discard: int = 0,
    show: bool = True,
) -> GradientComparison:
    """Bias, spread, angle and cost of several estimators at one x, in any environment.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`.
        estimators: estimators, or leaders (of which the estimator is used), by name; None: one of every kind that has a name,
            those of `register_estimator` included, as far as they can work here.
        x: where, ``(d,)``.
        context: xi, for dF_xi/dx; None: all of them, for dF/dx (finitely many contexts).
        follower: who responds. It is reset before each estimator's repeats.
        repeats: estimates of each, at least 2. Timing leaves out a first one that warms up.
        seed: of all randomness; every estimator starts from it.
        loss: as for `leaders.optimize`.
        exact: what to compare with, ``(d,)``; None: as ``reference`` says.
        reference: "exact": the model's exact gradient under the follower's optimum; "differences": central differences of the
            follower's responses (`leaders.reference`), which are also right for followers that are not optimal; None: the
            former where there is a table, the latter elsewhere.
        difference: how far these go to either side; None: 1e-4 where nothing is random, else 0.1. Their error is of its square.
        difference_steps: environment steps per return, where returns are sampled.
        difference_repeats: of each of these differences, at least 2; their spread is the reference's standard error.
        env_steps: with ``estimators=None``, steps per estimate: estimators that sample are sized so that one estimate takes about
            this many in a context, draws from the model included, and none computes returns instead; None: as they are by
            default.
        regularization: lambda of the reference and of the estimators made here, where the follower has none.
        discard: estimates thrown away before the repeats. Estimators that carry something on from estimate to estimate do so
            during the repeats too, which are then not independent.
        show: print the table.

    Raises:
        OptionError: fewer than two repeats, no estimators, or settings an estimator cannot work with.
        UnsupportedError: an estimator that was named cannot work here.
        ContextError: a context outside ``context_space``, or None where there are infinitely many.
    """
    repeats, seed, show = check_count("repeats", repeats, 2), check_count("seed", seed, 0), check_flag("show", show)
    discard, env_steps = check_count("discard", discard, 0), None if env_steps is None else check_count("env_steps", env_steps)
    difference = None if difference is None else check_number("difference", difference, above=0.0)
    difference_steps = check_count("difference_steps", difference_steps)
    difference_repeats = check_count("difference_repeats", difference_repeats, 2)
    regularization = None if regularization is None else check_regularization(regularization)
    if reference is not None:
        check_choice("reference", reference, ("exact", "differences"))
    check_options(loss=loss)
    if estimators is not None and not isinstance(estimators, Mapping):
        raise OptionError(f"estimators is {estimators!r}; expected a dict by name, e.g. {{'exact': leaders.ExactGradient()}}.")
    if estimators is not None and not estimators:
        raise OptionError("estimators is empty; expected at least one by name, e.g. {'exact': leaders.ExactGradient()}.")
    named = {name: check_estimator(f"estimator {name!r}", one) for name, one in (estimators or {}).items()}
    oracle = TrajectoryOracle(env, follower)
    point = torch.tensor(check_leader(x, oracle.core.leader_space))
    given = None if exact is None else torch.from_numpy(check_array("exact", exact, (len(point),)))
    contexts = _contexts(oracle, context)
    at = _Point(env, follower, point, contexts, seed, loss)
    left_out: dict[str, str] = {}
    if estimators is None:
        named, left_out = at.every_estimator(env_steps, None if follower.regularization is not None else regularization)
    source = "given"
    if given is not None:
        found = given, torch.zeros_like(point)
    else:
        lambdas = [e.requested_regularization for e in named.values() if e.requested_regularization is not None]
        own = next(iter(lambdas), regularization) if follower.regularization is None else None
        known = None if reference == "differences" else at.exact(own, reference == "exact")
        source = "differences" if known is None else "exact"
        if known is None:
            found = difference_gradient(
                env, follower, point, contexts, step=difference, env_steps=difference_steps, repeats=difference_repeats,
                seed=seed, loss=loss,
            )  # fmt: skip
        else:
            found = known, torch.zeros_like(point)
    rows = {name: at.row(one, repeats, discard, *found) for name, one in named.items()}
    comparison = GradientComparison(found[0], rows, repeats, found[1], source, left_out)
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


class _Point:
    """One problem at one x: what estimators are asked there.

    Args:
        env, follower, x, contexts, seed, loss: as for `compare_gradients`.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP,
        follower: Follower,
        x: Tensor,
        contexts: WeightedContexts,
        seed: int,
        loss: Loss | None,
    ):
        self.env, self.follower, self.x, self.contexts, self.seed, self.loss = env, follower, x, contexts, seed, loss

    def bound(self, estimator: Estimator) -> TrajectoryOracle:
        """A fresh oracle, with the estimator bound to it."""
        oracle = TrajectoryOracle(self.env, self.follower)
        estimator.bind(oracle, self.loss)
        return oracle

    def exact(self, regularization: float | None, needed: bool) -> Tensor | None:
        """The model's exact gradient; None where there is none to be had.

        Raises:
            as `ExactEstimator.bind`, if it is ``needed``.
        """
        estimator, rng = ExactEstimator(regularization), np.random.default_rng(self.seed)
        try:
            oracle = self.bound(estimator)
        except (UnsupportedError, RegularizationError):
            if needed or self.loss is not None:
                raise
            return None
        parts = [p * estimator.estimate(oracle, self.x, c, rng).gradient for c, p in self.contexts]
        return sum(parts, torch.zeros_like(self.x))

    def every_estimator(self, env_steps: int | None, regularization: float | None) -> tuple[dict[str, Estimator], dict[str, str]]:
        """One estimator of every kind that has a name; and why others cannot work here, by name."""
        from leaders.settings.run import LEADERS  # all of them: a module that takes long to import

        found: dict[str, Estimator] = {}
        left_out = {}
        for leader in LEADERS.values():
            for name, kind in leader.kinds.items():
                if kind is AutoEstimator:
                    left_out[name] = "it chooses one of the others."
                    continue
                try:
                    found[name] = self._sized(kind, env_steps, regularization)
                except BOCMDPError as error:
                    left_out[name] = str(error)
        return found, left_out

    def _sized(self, kind: type[Estimator], env_steps: int | None, regularization: float | None) -> Estimator:
        """An estimator that takes about so many steps; one estimate is made to see that it works, and what it takes."""
        options = inspect.signature(kind).parameters
        size = next((name for name in ("env_steps", "samples") if name in options), None)
        given: dict[str, Any] = {"regularization": regularization}
        if env_steps is None or size is None:
            estimator = kind(**given)
            self._first(estimator)
            return estimator
        given |= {"exact": False} if "exact" in options else {}  # it is to take steps
        asked = env_steps
        for _ in range(2):  # what is asked for and what is taken may not be in proportion
            taken = self._first(kind(**{size: asked}, **given))
            if taken == 0:
                break
            asked = max(1, round(asked * env_steps / taken))
        return kind(**{size: asked}, **given)

    def _first(self, estimator: Estimator) -> float:
        """The steps that one estimate takes."""
        oracle = self.bound(estimator)
        made = estimator.estimate(oracle, self.x, self.contexts[0][0], np.random.default_rng(self.seed))
        return float(oracle.env_steps + made.model_draws)

    def row(self, estimator: Estimator, repeats: int, discard: int, exact: Tensor, exact_error: Tensor) -> ComparedGradient:
        """One estimator's row."""
        self._first(estimator)
        oracle = self.bound(estimator)
        rng = np.random.default_rng(self.seed)
        draws, model_draws, iterations = [], 0, 0.0
        steps, trained, began = 0, 0, perf_counter()
        for number in range(discard + repeats):
            if number == discard:
                steps, trained, began = oracle.env_steps, oracle.training_steps, perf_counter()
            draw = torch.zeros_like(self.x)
            for context, probability in self.contexts:
                estimate = estimator.estimate(oracle, self.x, context, rng)
                draw += probability * estimate.gradient
                if number >= discard:
                    model_draws += estimate.model_draws
                    iterations += estimate.metrics.get("follower_iterations", np.nan)
            if number >= discard:
                draws.append(draw)
        seconds = (perf_counter() - began) / repeats
        stacked = torch.stack(draws)
        mean, error = stacked.mean(0), stacked.std(0) / repeats**0.5
        gap, norm = (mean - exact).abs(), float(exact.norm())
        # an estimator without noise still rounds
        noise = torch.clamp(torch.maximum((error.square() + exact_error.square()).sqrt(), 1e-9 * exact.abs().max()), min=1e-300)

        def size(errors: Tensor) -> float:
            """Root mean square length, relative to the exact gradient's."""
            return float(errors.square().sum(-1).mean().sqrt()) / norm if norm else float("nan")

        return ComparedGradient(
            mean=mean,
            standard_error=error,
            bias=float(gap.norm()),
            relative_bias=float(gap.norm()) / norm if norm else float("nan"),
            error=float(error.norm()),
            spread=size(stacked - mean),
            relative_error=size(stacked - exact),
            cosine=float(torch.nn.functional.cosine_similarity(stacked, exact[None], dim=-1).mean()),
            deviation=float((gap / noise).max()),
            env_steps=(oracle.env_steps - steps) / repeats,
            model_draws=model_draws / repeats,
            training_steps=(oracle.training_steps - trained) / repeats,
            follower_iterations=iterations / repeats,
            seconds=seconds,
        )
