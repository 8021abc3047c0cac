"""One run of a leader against a follower: its state between iterations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal, TypedDict

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP
from bocmdp_gym.errors import ConvergenceError, DamagedError, OptionError
from bocmdp_gym.options import check_count, check_instance
from bocmdp_gym.saved_state import array_entry, count_entry, entry, loading, number_entry
from bocmdp_gym.validation import check_leader
from bocmdp_gym.version import __version__
from followers import Follower, TrajectoryOracle
from followers.environments import check_unchanged
from followers.regularization import likely_regularization
from leaders.annealing import Annealing, LambdaSchedule, check_annealable, scheduled
from leaders.checkpoints import Checkpoints
from leaders.constraints import AugmentedLagrangian, Constraint, check_names
from leaders.contexts import every_context
from leaders.coupling import Coupling, coupling
from leaders.evaluator import Evaluator, evaluator
from leaders.gradients import Estimate, Loss, PolicyEstimator
from leaders.gradients.estimate import WeightedContexts, weighted
from leaders.history import History
from leaders.identity import describe, describe_oracle
from leaders.leaders import Leader
from leaders.objectives import Objective
from leaders.result import Callback, Progress, Result, Stopped
from leaders.run_arguments import check_kind, generator
from leaders.sampled_constraints import SampledConstraint, SampledLagrangian

#: (env, follower) -> oracle.
OracleFactory = Callable[[Any, Follower], TrajectoryOracle]


class RunOptions(TypedDict):
    """The options of a run; each is explained at `leaders.optimize`."""

    x0: npt.ArrayLike | Tensor | None
    loss: Loss | None
    objective: Objective | None
    constraints: Sequence[Constraint | SampledConstraint]
    constraint_penalty: float
    contexts: int | Literal["all"]
    regularization_schedule: Annealing | LambdaSchedule | None


class LeaderRun:
    """The state of a run between iterations; what a checkpoint keeps is `state`.

    Args:
        env, leader, follower, iterations, seed: as for `leaders.optimize`.
        options: the rest of what decides a run's numbers.
        oracle: how env and follower are put together.

    Attributes:
        x: the current iterate ``(d,)``.
        point: the same without a graph: it moves with it.
        done: iterations made.
        stopped: why it stopped early; None: it did not.
        share: of the time that is this run's, where several are made at once.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP | PopulationBOCMDP,
        leader: Leader,
        follower: Follower,
        iterations: int,
        seed: int | np.random.Generator,
        options: RunOptions,
        oracle: OracleFactory,
    ):
        self.iterations = check_count("iterations", iterations)
        check_kind("leader", leader, Leader, "HPGD()", (Follower,))
        check_kind("follower", follower, Follower, "SoftPolicyIteration(regularization=1e-3)", (Leader,))
        self._oracle_factory, self._options = oracle, options
        self._seed = describe(seed)
        self.rng = generator(seed)
        self.oracle, self.leader = oracle(env, follower), leader
        check_instance("what oracle(env, follower) returned", self.oracle, TrajectoryOracle)
        try:
            self._set_up(options)
        except BaseException:  # nobody else knows the oracle, and it may have started workers
            self.oracle.close()
            raise

    def _set_up(self, options: RunOptions) -> None:
        leader, loss, constraints = self.leader, options["loss"], options["constraints"]
        leader.estimator.bind(self.oracle, loss)
        check_annealable(options["regularization_schedule"], self.oracle)
        core = self.oracle.core
        self._number, self._every = _contexts_per_iteration(core, options["contexts"])
        self.coupling: Coupling | None = coupling(options["objective"], core, self._every is not None, loss)
        start = core.initial_leader(self.rng) if options["x0"] is None else options["x0"]
        start = start.detach().numpy() if isinstance(start, Tensor) else start
        self.x0 = torch.tensor(check_leader(start, core.leader_space))
        self._start(self.x0)
        self._kept = _kept_iterates(int(self.rng.integers(self.iterations)), self.rng)
        self.x_random = self.x0.clone()
        self.history = History()
        self.done = 0
        self.stopped: Stopped | None = None
        self._before = 0.0  # seconds of earlier sessions of this run
        self.share = 1.0
        self._began = perf_counter()
        self._regularization: float | None = None  # of the last iteration, where a schedule decides on it
        self.evaluator: Evaluator | None = None
        regularization = leader.estimator.regularization
        self.constrained: AugmentedLagrangian | None = None
        self.sampled: SampledLagrangian | None = None
        model = self.oracle.model
        if model is not None and model.exact_returns and regularization is not None:
            self.evaluator = evaluator(self.oracle, regularization, loss, self.coupling)
        penalty = options["constraint_penalty"]
        check_names(constraints)
        exact = [one for one in constraints if isinstance(one, Constraint)]
        measured = [one for one in constraints if isinstance(one, SampledConstraint)]
        if exact:
            if loss is not None or regularization is None:
                raise OptionError(
                    "constraints need the leader's return as objective and a regularization; write them into the loss."
                )
            check_unchanged("a constraint", self.oracle.layers, self.oracle.core)
            self.constrained = AugmentedLagrangian(self.oracle.model, exact, regularization, penalty)
        if measured:
            if loss is not None or self.coupling is not None:
                raise OptionError("a SampledConstraint is for the mean of the leader's returns; leave loss and objective out.")
            self.sampled = SampledLagrangian(self.oracle, measured, leader.estimator, penalty)

    def _start(self, x: Tensor) -> None:
        self.x = self.leader.update.start(x, self.iterations, self.oracle.core.leader_space)
        self.point = self.x.detach()

    @property
    def finished(self) -> bool:
        """Whether no iteration is left to make."""
        return self.stopped is not None or self.done >= self.iterations

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return self._before + self.share * (perf_counter() - self._began)

    def iterate(self, evaluate: bool, checkpoints: Checkpoints | None) -> dict[str, Any]:
        """One outer iteration. Returns its record."""
        drawn = self.draw()
        if self._options["regularization_schedule"] is None:
            return self.take(drawn, self._estimate(drawn), evaluate, checkpoints)
        with self._annealed():
            estimate = self._estimate(drawn)
        return self.take(drawn, estimate, evaluate, checkpoints)

    @contextmanager
    def _annealed(self) -> Iterator[None]:
        """Let follower and estimator work with the lambda of this iteration, where a schedule says another than their own."""
        schedule, follower = self._options["regularization_schedule"], self.oracle.follower
        if schedule is None or follower.regularization is None:
            yield
            return
        own = follower.regularization
        self._regularization = scheduled(schedule, self.done, self.iterations, own)
        try:
            follower.regularization = self._regularization
            self._take_regularization(self._regularization)
            yield
        finally:
            follower.regularization = own
            self._take_regularization(own)

    def _take_regularization(self, regularization: float) -> None:
        self.leader.estimator.take_regularization(regularization)
        if self.sampled is not None:
            self.sampled.take_regularization(regularization)

    def _estimate(self, drawn: WeightedContexts) -> Estimate:
        """The estimate of an iteration, from its contexts."""
        x, estimator = self.point, self.leader.estimator
        if self.coupling is not None and self._every is not None:
            together = estimator.estimate_coupled(self.oracle, x, drawn, self.coupling.value, self.rng)
            if together is not None:
                return together
        rngs = self._generators(x, [context for context, _ in drawn])
        estimate = estimator.estimate if self.sampled is None else self.sampled.estimate
        estimates = [estimate(self.oracle, x, c, rng) for (c, _), rng in zip(drawn, rngs, strict=True)]
        if self.coupling is None:
            return weighted(estimates, [weight for _, weight in drawn])
        return self.coupling.combine(drawn, estimates)

    def draw(self) -> WeightedContexts:
        """Begin an iteration: the contexts it is about, with their weights."""
        if self.done in self._kept:
            self.x_random = self.x.detach().clone()
        if self._every is not None:
            return self._every
        return [(self.oracle.core.sample_context(self.rng), 1.0 / self._number) for _ in range(self._number)]

    def take(
        self, drawn: WeightedContexts, estimate: Estimate, evaluate: bool, checkpoints: Checkpoints | None, name: str = ""
    ) -> dict[str, Any]:
        """End an iteration: move x along an estimate. Returns the iteration's record.

        Raises:
            ConvergenceError: the gradient is not finite.
        """
        seconds = self.seconds  # without the evaluation, which is not the leader's work
        x, gradient, context = self.point, estimate.gradient, drawn[0][0]
        measured: dict[str, float] = {}
        if self.constrained is not None:
            measured = self.constrained.measure(x)
            gradient = gradient + torch.stack([w * self.constrained.gradient(c) for c, w in drawn]).sum(0)
        if self.sampled is not None:
            measured |= self.sampled.measure(drawn)
        record: dict[str, Any] = {
            "iteration": self.done,
            "sampled_return": estimate.leader_return,
            "env_steps": self.oracle.env_steps,
        }
        if estimate.model_draws > 0:
            before = self.history[-1].get("model_draws", 0) if len(self.history) > 0 else 0
            record["model_draws"] = before + estimate.model_draws
        if len(drawn) == 1:
            record["context"] = context
        if estimate.standard_error is not None:
            record["standard_error"] = float(torch.linalg.vector_norm(estimate.standard_error))
        if self._regularization is not None:
            record["regularization"] = self._regularization
        record |= estimate.metrics | measured
        if self.evaluator is not None:
            if evaluate:
                values = self.evaluator.values(x)
                record["leader_return"] = self.evaluator.combined(values)
                if self.coupling is not None:
                    record |= self.coupling.columns(values)
            if self.oracle.last_response is not None and not self.oracle.follower.exact:
                record |= self.evaluator.suboptimality(self.oracle.last_response, self._regularization)
        if evaluate and self.oracle.last_response is not None:
            record |= likely_regularization(self.oracle, self.oracle.last_response)
        record["gradient_norm"] = norm = self.leader.update.step(self.x, gradient)
        if not norm < float("inf"):
            kept = "" if checkpoints is None else f" The last good checkpoint is {checkpoints.last}."
            raise ConvergenceError(
                f"the gradient of iteration {self.done}{name} (context {context}) is not finite: norm {norm}. x = {x.tolist()}. "
                f"Lower the learning rate or clip the gradient.{kept}"
            )
        record["seconds"] = seconds
        self.history.append(record)
        self.done += 1
        return record

    def report(self, callback: Callback, index: int = 0) -> None:
        """Show the last iteration to a callback, which may stop the run."""
        progress = Progress(self.done - 1, self.x.detach(), self.history[-1], self.history, self.oracle, index)
        answer = callback(progress)
        if isinstance(answer, (bool, np.bool_)) and answer and self.done < self.iterations:
            self.stopped = "callback"

    def _generators(self, x: Tensor, contexts: list[Any]) -> list[np.random.Generator]:
        """The generators of an iteration's contexts: the run's, or one for each where responses may be made at the same time."""
        if len(contexts) == 1 or self.oracle.follower.exact or not isinstance(self.leader.estimator, PolicyEstimator):
            return [self.rng] * len(contexts)
        rngs = [np.random.default_rng(seeds) for seeds in self.rng.integers(2**32, size=(len(contexts), 4))]
        self.oracle.respond_ahead(x, contexts, rngs)
        return rngs

    def result(self) -> Result:
        """What the run found."""
        found = self.x.detach().clone()
        values = None if self.evaluator is None else self.evaluator.values(found)
        return Result(
            x=found,
            x0=self.x0,
            x_random=self.x_random,
            history=self.history,
            leader_return=None if self.evaluator is None or values is None else self.evaluator.combined(values),
            env_steps=self.oracle.env_steps,
            iterations=self.done,
            stopped=self.stopped or "iterations",
            seconds=self.seconds,
            oracle=self.oracle,
            estimator=repr(self.leader.estimator.working),
            context_returns=values,
        )

    def identity(self, evaluate_every: int) -> dict[str, Any]:
        """Everything that changes the run's numbers, as JSON-able values: equal for a checkpoint to belong to this run."""
        return describe(
            {
                **describe_oracle(self.oracle),
                "oracle": self._oracle_factory,
                "estimator": self.leader.estimator,
                "update": self.leader.update,
                **self._options,
                "seed": self._seed,
                "iterations": self.iterations,
                "evaluate_every": evaluate_every,
                "library version": __version__,
            }
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, besides the history."""
        return {
            "done": self.done,
            "x": self.x,
            "x0": self.x0,
            "x_random": self.x_random,
            "kept": np.array(sorted(self._kept)),
            "rng": json.dumps(self.rng.bit_generator.state),
            "env_steps": self.oracle.env_steps,
            "seconds": self.seconds,
            "update": self.leader.update.state(),
            "estimator": self.leader.estimator.state(),
            "follower": self.oracle.follower.state(),
            "constraints": {} if self.constrained is None else self.constrained.state(),
            "sampled constraints": {} if self.sampled is None else self.sampled.state(),
            "evaluator": {} if self.evaluator is None else self.evaluator.state(),
            "coupling": {} if self.coupling is None else self.coupling.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`, and the history under "history".

        Raises:
            DamagedError: the state is not that of a run like this: entries missing, of another type or size, or impossible.
        """
        with loading("the checkpoint"):
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        d = (len(self.x0),)
        self.done = count_entry(state, "done", self.iterations)
        self.x0, self.x_random = (torch.from_numpy(array_entry(state, name, d)) for name in ("x0", "x_random"))
        self._kept = frozenset(array_entry(state, "kept", (-1,), "i").tolist())
        self._start(torch.from_numpy(array_entry(state, "x", d)))
        self.leader.update.load_state(entry(state, "update", dict))
        if state["update"]["done"] != self.done:
            raise DamagedError(f"the update made {state['update']['done']} steps, and the run {self.done} iterations.")
        self.rng.bit_generator.state = json.loads(entry(state, "rng", str))
        self.oracle.restore(count_entry(state, "env_steps"))
        self._before = number_entry(state, "seconds")
        self.history = state.get("history", History())
        if len(self.history) != self.done:
            raise DamagedError(f"the history has {len(self.history)} rows, and the run had made {self.done} iterations.")
        self.leader.estimator.load_state(entry(state, "estimator", dict))
        self.oracle.follower.load_state(entry(state, "follower", dict))
        if self.evaluator is not None:
            self.evaluator.load_state(entry(state, "evaluator", dict))
        if self.coupling is not None:
            self.coupling.load_state(entry(state, "coupling", dict))
        if self.constrained is not None:
            self.constrained.load_state(entry(state, "constraints", dict))
        if self.sampled is not None:
            self.sampled.load_state(entry(state, "sampled constraints", dict))


def _contexts_per_iteration(core: Any, contexts: int | Literal["all"]) -> tuple[int, WeightedContexts | None]:
    """How many contexts an iteration draws, or all of them.

    Raises:
        OptionError: neither a positive number nor "all", or all of infinitely many.
    """
    if isinstance(contexts, str) and contexts == "all":
        every = every_context(core)
        if every is None:
            raise OptionError(f'contexts="all" needs finitely many contexts; {type(core).__name__} has {core.context_space}.')
        return len(every), every
    if isinstance(contexts, str):
        raise OptionError(f'contexts is {contexts!r}; expected a number of contexts per iteration, or "all".')
    return check_count("contexts", contexts), None


def _kept_iterates(last: int, rng: np.random.Generator) -> frozenset[int]:
    """Which iterates become ``x_random`` one after another, ``last`` being the last of them.

    The latest of them that a run reaches is uniform over the iterates it reaches, wherever it stops: ``last`` is, over all of
    them, and where the run stops before it, so is one drawn among those before, and so on. ``rng`` itself draws nothing.
    """
    digest = hashlib.sha256(json.dumps(rng.bit_generator.state, default=str).encode()).digest()
    draw = np.random.default_rng(list(digest))
    kept = {last}
    while last > 0:
        last = int(draw.integers(last))
        kept.add(last)
    return frozenset(kept)
