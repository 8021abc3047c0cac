r"""Constraints on outcomes that are estimated from trajectories: any environment, also where nothing is a table.

The mathematics is that of `leaders.constraints`, with estimates: an outcome G_xi(x) = E sum_t gamma_L^t c_t is a second leader's
return, so the leader's own estimator gives its gradient from the same responses and steps, by the same weights, with c in the
place of the leader's reward. With the slack g, which is G - at_least or at_most - G,

    x <- x + eta (dF + sum y dg),      y = max(0, mu - rho g),      mu <- max(0, mu - rho gbar) every 20 iterations.

g is what the iteration before found (the last one about this context), so that it is independent of the noise of dg, and gbar a
running mean over about ten. The noise of dg is multiplied by y, and that of g by rho: a rho that serves exact constraints may be
too large here, and so is one for which eta rho |dg|^2 exceeds 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, TabularBOCMDP, Trajectories
from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import ModelError, OptionError, UnsupportedError
from bocmdp_gym.options import as_array, check_flag, check_function, check_number
from bocmdp_gym.saved_state import array_entry, count_entry, entry
from bocmdp_gym.wrappers.functions import POINT_ARGUMENTS, StepFunction, as_batch, as_context
from followers import TrajectoryOracle
from leaders._replay import OutcomeModel, Recording, Replay, StepValues
from leaders.contexts import every_context
from leaders.gradients import Estimate, Estimator
from leaders.gradients.estimate import WeightedContexts

Array = npt.NDArray[np.float64]
#: Iterations that gbar is over, and from one update of mu to the next.
_MEMORY, _MULTIPLIER_EVERY = 10, 20


@dataclass(frozen=True, repr=False)
class SampledConstraint(WithArguments):
    """An outcome, estimated from trajectories, that must stay at or below a level, or at or above one.

    Attributes:
        name: names its columns in the history: ``slack_NAME``, ``slack_error_NAME`` and ``multiplier_NAME``.
        outcome: what a step is worth. In tabular problems: "follower" (the follower's own reward), an array c ``(C, S, A)``, or a
            function of x that returns one. Elsewhere: a function (x, observations, actions, context) -> ``(N,)`` in torch, as
            those of `bocmdp_gym.wrappers.LeaderReward`. All are discounted as the leader's reward is.
        steps: instead of ``outcome``, where a step's worth is only known once it is made: a function of trajectories that
            returns one number per step ``(N,)``, such as whether the step ended the episode (`ended`). Itself it must not
            depend on x.
        at_most, at_least: the level; one of them.
        per_context: whether it must hold in every context (finitely many), or on average over contexts.

    Raises:
        OptionError: neither or both of outcome and steps, or of the levels, or something else than these are.
    """

    name: str
    outcome: str | Array | Tensor | Callable[..., Tensor] | None = None
    steps: StepValues | None = None
    at_most: float | None = None
    at_least: float | None = None
    per_context: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise OptionError(f"the constraint's name is {self.name!r}; expected a text, which names its columns.")
        for pair in ("outcome", "steps"), ("at_most", "at_least"):
            given = [one for one in pair if getattr(self, one) is not None]
            if len(given) != 1:
                raise OptionError(
                    f"constraint {self.name!r} has {' and '.join(given) or 'neither'}; expected {' or '.join(pair)}."
                )
        for level in ("at_most", "at_least"):
            if getattr(self, level) is not None:
                found = check_number(f"{level} of constraint {self.name!r}", getattr(self, level))
                object.__setattr__(self, level, found)
        flag = check_flag(f"per_context of constraint {self.name!r}", self.per_context)
        object.__setattr__(self, "per_context", flag)
        if self.steps is not None:
            check_function(f"steps of constraint {self.name!r}", self.steps, "batch")
        elif isinstance(self.outcome, str):
            if self.outcome != "follower":
                raise OptionError(f"the outcome of constraint {self.name!r} is {self.outcome!r}; expected 'follower'.")
        elif not callable(self.outcome):
            array = as_array(self.outcome)
            if array is None or not np.isfinite(array).all():
                raise OptionError(
                    f"the outcome of constraint {self.name!r} is {self.outcome!r}; expected 'follower', finite numbers "
                    f"(C, S, A), a function of x, or one of ({POINT_ARGUMENTS})."
                )
            object.__setattr__(self, "outcome", array)

    @property
    def sign(self) -> float:
        """Of the outcome in the slack."""
        return 1.0 if self.at_least is not None else -1.0

    def slack(self, value: float) -> float:
        """How far an outcome is from the level; negative: violated."""
        level = self.at_most if self.at_least is None else self.at_least
        assert level is not None
        return self.sign * (value - level)


def ended(batch: Trajectories) -> Array:
    """1 for every step that ended its episode by the problem's own rules, 0 for all others ``(N,)``: crashes, falls, sales."""
    found = np.zeros(batch.n_steps)
    found[batch.ends[batch.terminated] - 1] = 1.0
    return found


class SampledLagrangian:
    """Slacks, multipliers and the constraints' share of the gradient, from what an estimator saw.

    Args:
        oracle: the run's.
        constraints: at least one.
        estimator: the leader's, bound.
        penalty: rho.

    Raises:
        UnsupportedError: an estimator that cannot be asked of the same trajectories again; outcomes that it cannot weigh.
        OptionError: a constraint that must hold in each of infinitely many contexts.
    """

    def __init__(self, oracle: TrajectoryOracle, constraints: Sequence[SampledConstraint], estimator: Estimator, penalty: float):
        self.constraints, self._penalty = tuple(constraints), penalty
        self._oracle, self._estimator = oracle, estimator
        name = type(estimator.working).__name__
        if not estimator.working.replays:
            raise UnsupportedError(
                f"{name} cannot weigh the outcome of a SampledConstraint; use HPGD with monte_carlo or critic, or ZeroOrder."
            )
        if oracle.follower.populates:
            raise UnsupportedError(
                f"a SampledConstraint weighs the steps of single followers, and {type(oracle.follower).__name__} answers for a "
                "population; write the outcome into its objective(x, loads, values)."
            )
        self._replays, self._estimators = [], []
        for constraint in self.constraints:
            if constraint.steps is not None and not estimator.working.replays_steps:
                raise UnsupportedError(
                    f"{name} asks what actions not taken are worth, which the steps of constraint {constraint.name!r} do not "
                    f"say; give outcome=, a function of ({POINT_ARGUMENTS}), or use ZeroOrder(exact=False)."
                )
            self._replays.append(_replay(oracle, constraint))
            own = deepcopy(estimator)
            own.bind(self._replays[-1])  # type: ignore[arg-type]
            self._estimators.append(own)
        every = every_context(oracle.core)
        if every is None and any(c.per_context for c in self.constraints):
            raise OptionError(
                f"contexts are from {oracle.core.context_space}, so no constraint can be kept in each of them; give the "
                "SampledConstraint per_context=False."
            )
        self._places = {} if every is None else {context: i for i, (context, _) in enumerate(every)}
        shape = (len(self.constraints), max(len(self._places), 1))
        self._mu, self._y, self._means, self._last = (np.zeros(shape) for _ in range(4))
        self._visits = np.zeros(shape, dtype=np.int64)
        self._steps = 0
        self._seen: list[tuple[Any, list[tuple[float, float]]]] = []  # each context's slacks, with their errors

    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        """The estimator's estimate, with the constraints' share of the gradient."""
        recording, before = Recording(oracle), deepcopy(rng)
        estimate = self._estimator.estimate(recording, x, context, rng)  # type: ignore[arg-type]
        discount, seen = oracle.core.leader_discount, []
        shares = []
        for j, (constraint, replay, own) in enumerate(zip(self.constraints, self._replays, self._estimators, strict=True)):
            batches = replay.load(recording)
            outcome = own.estimate(replay, x, context, deepcopy(before))  # type: ignore[arg-type]
            value, error = outcome.leader_return, float("nan")
            if batches:
                returns = np.concatenate([batch.discounted_returns(discount, leader=True) for batch in batches])
                error = float(returns.std(ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else float("nan")
                value = float(returns.mean()) if constraint.steps is not None else value
            seen.append((constraint.slack(value), error))
            place = self._place(constraint, context)
            slack = self._last[j, place] if self._visits[j, place] else seen[-1][0]
            self._y[j, place] = max(0.0, self._mu[j, place] - self._penalty * slack)
            shares.append(constraint.sign * self._y[j, place] * outcome.gradient)
        self._seen.append((context, seen))
        estimate.gradient = estimate.gradient + torch.stack(shares).sum(0)
        estimate.standard_error = None  # it would be that of the return alone
        return estimate

    def measure(self, drawn: WeightedContexts) -> dict[str, float]:
        """End an iteration: take its slacks into their means, and set mu. Returns their columns of the history."""
        record = {}
        weights = np.array([weight for _, weight in drawn])
        weights = weights / weights.sum()
        for j, constraint in enumerate(self.constraints):
            slacks, errors = np.array([seen[j] for _, seen in self._seen]).T
            if constraint.per_context:
                for (context, _), slack in zip(self._seen, slacks, strict=True):
                    self._visit(j, self._place(constraint, context), float(slack))
                worst = int(slacks.argmin())
                found, error = float(slacks[worst]), float(errors[worst])
            else:
                found, error = float(weights @ slacks), float(np.sqrt((weights**2) @ errors**2))
                self._visit(j, 0, found)
            record[f"slack_{constraint.name}"] = found
            if np.isfinite(error):
                record[f"slack_error_{constraint.name}"] = error
            record[f"multiplier_{constraint.name}"] = float(self._y[j].max())
        self._seen = []
        self._steps += 1
        if self._steps % _MULTIPLIER_EVERY == 0:
            self._mu = np.maximum(0.0, self._mu - self._penalty * self._means)
        return record

    def take_regularization(self, regularization: float) -> None:
        """As `Estimator.take_regularization`."""
        for own in self._estimators:
            own.take_regularization(regularization)

    def _place(self, constraint: SampledConstraint, context: Any) -> int:
        return self._places[context] if constraint.per_context else 0

    def _visit(self, j: int, place: int, slack: float) -> None:
        """Remember a slack, and take it into its running mean."""
        self._last[j, place] = slack
        self._visits[j, place] += 1
        self._means[j, place] += (slack - self._means[j, place]) / min(int(self._visits[j, place]), _MEMORY)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        own = {i: estimator.state() for i, estimator in enumerate(self._estimators)}
        numbers = {"mu": self._mu, "y": self._y, "means": self._means, "last": self._last, "visits": self._visits}
        return {**numbers, "steps": self._steps, "estimators": own}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        shape = self._mu.shape
        self._mu, self._y, self._means, self._last = (array_entry(state, name, shape) for name in ("mu", "y", "means", "last"))
        self._visits, self._steps = array_entry(state, "visits", shape, "i"), count_entry(state, "steps")
        saved = entry(state, "estimators", dict)
        for i, estimator in enumerate(self._estimators):
            estimator.load_state(entry(saved, i, dict))


def _replay(oracle: TrajectoryOracle, constraint: SampledConstraint) -> Replay:
    """The oracle that estimates a constraint's outcome.

    Raises:
        UnsupportedError: an outcome that the environment cannot have.
        ModelError: an array of the wrong shape, or a function of x that does not return one.
    """
    model, outcome = oracle.model, constraint.outcome
    if isinstance(model, TabularBOCMDP):
        if constraint.steps is not None:
            outcome = np.zeros((model.n_contexts, model.n_states, model.n_actions))
        elif isinstance(outcome, str):
            outcome = partial(model.part, "reward")
        replaced = model.replace(leader_reward=outcome)
        return Replay(oracle, replaced, None if constraint.steps is None else _values_of_steps(constraint))
    if constraint.steps is None and not callable(outcome):
        raise UnsupportedError(
            f"the outcome of constraint {constraint.name!r} is {outcome!r}, and {type(oracle.core).__name__} has no table; give "
            f"a function of ({POINT_ARGUMENTS}), or steps=lambda batch: batch.rewards for the follower's own."
        )
    function = None if constraint.steps is not None else _point_function(constraint)
    values = _values_of_steps(constraint) if function is None else partial(_at_points, function)
    return Replay(oracle, OutcomeModel(model or _Unknown(oracle.core), function), values)


class _Unknown(BOCMDP):
    """The model of an environment that has none."""

    def __init__(self, core: Any):
        self.leader_dim, self.discount = core.leader_space.shape[0], core.discount
        self.leader_discount = core.leader_discount

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        raise NotImplementedError

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        raise NotImplementedError


def _values_of_steps(constraint: SampledConstraint) -> StepValues:
    def values(batch: Trajectories) -> Array:
        assert constraint.steps is not None
        found = constraint.steps(batch)
        array = as_array(found.astype(np.float64) if isinstance(found, np.ndarray) and found.dtype == np.bool_ else found)
        if array is None or array.shape != (batch.n_steps,) or not np.isfinite(array).all():
            got = type(found).__name__ if array is None else f"an array of shape {array.shape}"
            raise ModelError(
                f"the steps of constraint {constraint.name!r} are {got}; expected one finite number for each of the "
                f"{batch.n_steps} steps."
            )
        return array

    return values


def _point_function(constraint: SampledConstraint) -> Callable[..., Tensor]:
    outcome: Any = constraint.outcome
    evaluated = StepFunction(f"the outcome of constraint {constraint.name!r}", outcome)
    if evaluated.outcomes:
        raise UnsupportedError(
            f"{evaluated} reads {' and '.join(evaluated.outcomes)}, which are known of steps that were made; give a function of "
            "trajectories, steps=, instead."
        )

    def function(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        points = as_batch(observations), as_batch(actions), as_context(context)
        return evaluated(x, *points, n=len(actions))

    return function


def _at_points(function: Callable[..., Tensor], batch: Trajectories) -> Array:
    with torch.no_grad():
        values: Array = function(torch.tensor(batch.leader), batch.observations, batch.actions, batch.context).numpy()
    return values
