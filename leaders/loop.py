"""`optimize`: the only outer loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal, TypedDict, Unpack, overload

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.env import check_leader
from bocmdp_gym.errors import ConvergenceError, OptionError, UnsupportedError
from bocmdp_gym.options import check_count
from bocmdp_gym.soft_bellman import WarmSolver
from followers import Follower, Policy, TrajectoryOracle, suboptimality
from leaders.batch import BatchEstimator, Drawn, batch_estimator, weighted
from leaders.checkpoints import Checkpoints
from leaders.constraints import AugmentedLagrangian, Constraint
from leaders.gradients import Estimate, Loss, PolicyEstimator
from leaders.gradients.exact import leader_values
from leaders.history import History
from leaders.leaders import Leader

#: (env, follower) -> oracle.
OracleFactory = Callable[[Any, Follower], TrajectoryOracle]
_ONE_SEED = (int, np.integer, np.random.Generator)
#: Runs shorter than this show no progress bar.
_QUIET_ITERATIONS = 50


@dataclass
class Result:
    """What a run found.

    Attributes:
        x: the last iterate ``(d,)``.
        x0: where the run started ``(d,)``.
        x_random: an iterate drawn uniformly from x_0..x_{T-1}, the one Theorem 2.5 speaks of.
        history: one record per iteration (`leaders.history.COLUMNS`).
        leader_return: exact F(x) at ``x`` (minus the loss, with a loss); None without a tabular model.
        env_steps: environment steps used.
        iterations: T.
        seconds: wall-clock time.
        oracle: the environment and follower the run used, as the run left them.
    """

    x: Tensor
    x0: Tensor
    x_random: Tensor
    history: History
    leader_return: float | None
    env_steps: int
    iterations: int
    seconds: float
    oracle: TrajectoryOracle


@dataclass
class Progress:
    """What a callback is shown: the state after the record's iteration was taken."""

    iteration: int
    x: Tensor
    record: dict[str, Any]
    history: History
    oracle: TrajectoryOracle
    run: int = 0  # which one, where a list of seeds was given


class Evaluator:
    """Exact E_xi of the leader's return (or of minus a loss) under the follower's optimum, without touching the follower.

    The same optimum says how far the follower's own policy is from it.
    """

    def __init__(self, oracle: TrajectoryOracle, regularization: float, loss: Loss | None = None):
        self._oracle, self._regularization, self._loss = oracle, regularization, loss
        self._solver = WarmSolver()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the warm starts."""
        return self._solver.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._solver.load_state(state)

    def __call__(self, x: Tensor) -> float:
        mdps = self._oracle.configure(x)
        total = 0.0
        for context, probability in enumerate(mdps.model.context_probabilities):
            policy = self._solver.solve(mdps, context, self._regularization).policy
            if self._loss is None:
                value = leader_values(mdps.arrays(context), policy).leader_return
            else:
                value = -float(self._loss(x.detach(), torch.from_numpy(policy), context))
            total += probability * value
        return total

    def suboptimality(self, policy: Policy) -> dict[str, float]:
        """The columns that say how far a response is from the follower's optimum; none where it tells no probabilities."""
        table = self._oracle.tabulate(policy)
        if table is None:
            return {}
        mdps = self._oracle.configure(table.leader)
        measured = suboptimality(mdps, table, table.leader, self._regularization, solver=self._solver)
        return {"follower_delta": measured.delta, "follower_value_gap": measured.value_gap}


class RunOptions(TypedDict, total=False):
    """The keywords of `optimize`, but for ``seed``; each is explained there."""

    x0: npt.ArrayLike | Tensor | None
    loss: Loss | None
    constraints: Sequence[Constraint]
    constraint_penalty: float
    contexts: int | Literal["all"]
    oracle: OracleFactory
    device: str | None
    evaluate_every: int
    callback: Callable[[Progress], None] | None
    checkpoints: Checkpoints | None
    resume: bool
    progress: bool | None


@overload
def optimize(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    leader: Leader,
    follower: Follower,
    iterations: int,
    *,
    seed: int | np.random.Generator = 0,
    **options: Unpack[RunOptions],
) -> Result: ...


@overload
def optimize(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    leader: Leader | Sequence[Leader],
    follower: Follower,
    iterations: int,
    *,
    seed: Sequence[int],
    **options: Unpack[RunOptions],
) -> list[Result]: ...


def optimize(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    leader: Leader | Sequence[Leader],
    follower: Follower,
    iterations: int,
    *,
    seed: int | np.random.Generator | Sequence[int] = 0,
    x0: npt.ArrayLike | Tensor | None = None,
    loss: Loss | None = None,
    constraints: Sequence[Constraint] = (),
    constraint_penalty: float = 50.0,
    contexts: int | Literal["all"] = 1,
    oracle: OracleFactory = TrajectoryOracle,
    device: str | None = None,
    evaluate_every: int = 100,
    callback: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Result | list[Result]:
    """Run a leader against a follower: draw xi ~ P_xi, estimate dF_xi/dx, move x; ``iterations`` times.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`.
        leader: estimator and update; with a list of seeds, also a list of as many leaders (step sizes to compare, say).
        follower: who responds.
        iterations: T >= 1.
        seed: all randomness of the run comes from this seed or generator; equal seeds give equal numbers, bit for bit. A list of
            seeds makes that many runs, each the run of its seed alone: HPGD with trajectories and ExactGradient run all of them
            at once, on all cores, where only the rewards of a small tabular problem depend on x (`leaders.batch`, which also
            says where last bits may differ); all else runs one after another.
        x0: where to start, ``(d,)``; the environment's ``initial_leader(rng)`` if None.
        loss: a differentiable f(x, policy (S, A), context), minimised instead of maximising the leader's return.
        constraints: on outcomes of tabular problems, by an augmented Lagrangian (`leaders.constraints`).
        constraint_penalty: rho of the augmented Lagrangian: larger presses harder, and too large overshoots.
        contexts: contexts drawn per iteration, whose estimates are averaged; "all": every one of finitely many, weighted by
            its probability.
        oracle: how env and follower are put together; ``functools.partial(RayOracle, workers=4)`` for slow followers, whose
            responses in the contexts of an iteration are then made at the same time.
        device: have ExactGradient solve its problems at once by batched LU factorisations of torch, in float64, on this device
            ("cuda"; "cpu" is for comparison only); None: compiled kernels.
        evaluate_every: how often the exact leader return is computed (tabular models) and ``callback`` is called.
        callback: called with a `Progress` every ``evaluate_every`` iterations and after the last.
        checkpoints: where and how often to save the run; SIGTERM then ends it with a checkpoint. Not with a list of seeds:
            `leaders.sweep` keeps each run's.
        resume: go on from the newest checkpoint, if there is one.
        progress: show a progress bar; None: for runs of more than a few iterations.

    Returns:
        The run's `Result`; with a list of seeds, a list of them in the same order.

    Raises:
        OptionError, UnsupportedError, RegularizationError: settings that cannot work together, before anything runs.
        CheckpointError: the newest checkpoint is damaged or of another run, or one cannot be written.
        ConvergenceError: a gradient that is not finite, naming the iteration, x and the last good checkpoint.
        RunInterruptedError: SIGTERM came, and the run was saved.
    """
    check_count("iterations", iterations)
    check_count("evaluate_every", evaluate_every)
    if resume and checkpoints is None:
        raise OptionError("resume=True needs checkpoints=, the folder to resume from.")
    start = partial(
        _Run, env, x0=x0, loss=loss, constraints=constraints, penalty=constraint_penalty, contexts=contexts, oracle=oracle
    )
    quiet = iterations < _QUIET_ITERATIONS if progress is None else not progress
    if not isinstance(seed, _ONE_SEED) or device is not None or isinstance(leader, Sequence):
        if checkpoints is not None:
            raise OptionError(
                "checkpoints are of one run; with a list of seeds or a device, leave them out (or use leaders.sweep)."
            )
        leaders, seeds = _one_per_run(leader, [seed] if isinstance(seed, _ONE_SEED) else seed)
        runs, batch = _try_batch(start, leaders, follower, iterations, seeds, loss, oracle, device)
        if batch is not None:
            results = _optimize_at_once(runs, batch, evaluate_every, callback, quiet)
        else:
            results = []
            for i, (own, number) in enumerate(zip(leaders, seeds, strict=True)):
                report = None if callback is None else partial(_report, callback, i)
                results.append(_optimize_alone(start(own, follower, iterations, number), evaluate_every, report, quiet))
        return results[0] if isinstance(seed, _ONE_SEED) else results
    run = start(leader, follower, iterations, seed)
    if checkpoints is not None:
        checkpoints.fingerprint |= run.identity(seed, contexts)
        if not resume:
            checkpoints.begin()
        elif (saved := checkpoints.latest()) is not None:
            run.load_state(saved)
    return _optimize_alone(run, evaluate_every, callback, quiet, checkpoints)


def _optimize_alone(
    run: _Run,
    evaluate_every: int,
    callback: Callable[[Progress], None] | None,
    quiet: bool,
    checkpoints: Checkpoints | None = None,
) -> Result:
    """The outer loop of `optimize` for one run."""
    stoppable = nullcontext() if checkpoints is None else checkpoints.stop_on_sigterm()
    with _one_torch_thread(), stoppable, tqdm(total=run.iterations, initial=run.done, unit="it", disable=quiet) as bar:
        if checkpoints is not None and checkpoints.last is None:
            checkpoints.save(run.done, run.state())
        while run.done < run.iterations:
            due = run.done % evaluate_every == 0 or run.done == run.iterations - 1
            record = run.iterate(evaluate=due, checkpoints=checkpoints)
            if due:
                if "leader_return" in record:
                    bar.set_postfix_str(f"leader return {record['leader_return']:.4f}", refresh=False)
                if callback is not None:
                    callback(Progress(run.done - 1, run.x.detach(), record, run.history, run.oracle))
            if checkpoints is not None and checkpoints.due(run.done):
                checkpoints.save(run.done, run.state())
                checkpoints.stop_if_asked()
            bar.update()
    return run.result()


def _one_per_run(leader: Leader | Sequence[Leader], seeds: Any) -> tuple[list[Leader], list[Any]]:
    """A leader and a seed for every run; leaders of equal settings share an estimator, never an update.

    Raises:
        OptionError: seeds that are no list, no seeds, or not as many leaders.
    """
    if isinstance(seeds, str) or not isinstance(seeds, (Sequence, np.ndarray)) or len(seeds) == 0:
        raise OptionError(f"seed is {seeds!r}; expected a whole number, a generator, or a list of whole numbers.")
    leaders = list(leader) if isinstance(leader, Sequence) else [leader] * len(seeds)
    if len(leaders) != len(seeds):
        raise OptionError(
            f"there are {len(leaders)} leaders for {len(seeds)} seeds; expected one each (repeat a seed if need be)."
        )
    return [Leader(one.estimator, copy(one.update)) for one in leaders], list(seeds)


def _try_batch(
    start: Callable[..., _Run],
    leaders: list[Leader],
    follower: Follower,
    iterations: int,
    seeds: list[Any],
    loss: Loss | None,
    oracle: OracleFactory,
    device: str | None,
) -> tuple[list[_Run], BatchEstimator | None]:
    """The runs, begun, and how they can be made at once; None if they cannot."""
    if device is not None and loss is not None:
        raise UnsupportedError("device= is for the leader's return, not for a general loss; leave one of them out.")
    if loss is not None or oracle is not TrajectoryOracle:
        return [], None
    first = start(leaders[0], follower, iterations, seeds[0])
    batch = batch_estimator(first.oracle, [one.estimator for one in leaders], device)
    if batch is None:
        return [], None
    others = [start(one, follower, iterations, seed) for one, seed in zip(leaders[1:], seeds[1:], strict=True)]
    return [first, *others], batch


def _optimize_at_once(
    runs: list[_Run], batch: BatchEstimator, evaluate_every: int, callback: Callable[[Progress], None] | None, quiet: bool
) -> list[Result]:
    """The outer loop of `optimize` for many runs in step."""
    iterations = runs[0].iterations
    for run in runs:
        run.share = 1.0 / len(runs)
    with _one_torch_thread(), closing(batch), tqdm(total=iterations * len(runs), unit="it", disable=quiet) as bar:
        for iteration in range(iterations):
            due = iteration % evaluate_every == 0 or iteration == iterations - 1
            drawn = [run.draw() for run in runs]
            x = torch.stack([run.x.detach() for run in runs])
            estimates = batch.estimate(x, drawn, [run.rng for run in runs])
            for i, (run, contexts, estimate) in enumerate(zip(runs, drawn, estimates, strict=True)):
                run.oracle.env_steps += estimate.env_steps
                record = run.take(contexts, estimate, due, None, f" of run {i}")
                if due and callback is not None:
                    callback(Progress(iteration, run.x.detach(), record, run.history, run.oracle, i))
            if due:
                mean = float(np.mean([run.history[-1].get("leader_return", np.nan) for run in runs]))
                bar.set_postfix_str(f"mean leader return {mean:.4f}", refresh=False)
            bar.update(len(runs))
        return [run.result() for run in runs]


def _report(callback: Callable[[Progress], None], run: int, progress: Progress) -> None:
    callback(replace(progress, run=run))


class _Run:
    """The state of a run between iterations; what a checkpoint keeps is `state`."""

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP,
        leader: Leader,
        follower: Follower,
        iterations: int,
        seed: int | np.random.Generator,
        x0: npt.ArrayLike | Tensor | None,
        loss: Loss | None,
        constraints: Sequence[Constraint],
        penalty: float,
        contexts: int | Literal["all"],
        oracle: OracleFactory,
    ):
        self.rng = seed if isinstance(seed, np.random.Generator) else generator(seed)
        self.oracle = oracle(env, follower)
        self.leader, self.iterations = leader, iterations
        leader.estimator.bind(self.oracle, loss)
        core = self.oracle.core
        self._weighted = _context_sampler(core, contexts)
        start = core.initial_leader(self.rng) if x0 is None else x0
        start = start.detach().numpy() if isinstance(start, Tensor) else start
        self.x0 = torch.tensor(check_leader(start, core.leader_space))
        self.x = leader.update.start(self.x0, iterations, core.leader_space)
        self.chosen = int(self.rng.integers(iterations))
        self.x_random = self.x0.clone()
        self.history = History()
        self.done = 0
        self._before = 0.0  # seconds of earlier sessions of this run
        self.share = 1.0  # of the time, where runs share it
        self._began = perf_counter()
        self.evaluate: Evaluator | None = None
        regularization = leader.estimator.regularization
        self.constrained: AugmentedLagrangian | None = None
        if isinstance(self.oracle.model, TabularBOCMDP) and regularization is not None:
            self.evaluate = Evaluator(self.oracle, regularization, loss)
        if constraints:
            if loss is not None or regularization is None:
                raise OptionError(
                    "constraints need the leader's return as objective and a regularization; write them into the loss."
                )
            self.constrained = AugmentedLagrangian(self.oracle.model, constraints, regularization, penalty)

    def identity(self, seed: Any, contexts: Any) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run, as JSON-able values."""
        update = self.leader.update
        return {
            "iterations": self.iterations,
            "seed": "a generator" if isinstance(seed, np.random.Generator) else int(seed),
            "contexts per iteration": contexts,
            "environment class": type(self.oracle.core).__name__,
            "dimension of x": len(self.x0),
            "estimator": type(self.leader.estimator).__name__,
            "regularization of the leader": self.leader.estimator.regularization,
            "optimizer": update.optimizer_name,
            "step size": update.learning_rate,
            "follower class": type(self.oracle.follower).__name__,
        }

    @property
    def seconds(self) -> float:
        return self._before + self.share * (perf_counter() - self._began)

    def iterate(self, evaluate: bool, checkpoints: Checkpoints | None) -> dict[str, Any]:
        """One outer iteration. Returns its record."""
        x = self.x.detach()
        drawn = self.draw()
        rngs = self._generators(x, [context for context, _ in drawn])
        estimator = self.leader.estimator
        estimates = [estimator.estimate(self.oracle, x, c, rng) for (c, _), rng in zip(drawn, rngs, strict=True)]
        return self.take(drawn, weighted(estimates, [w for _, w in drawn]), evaluate, checkpoints)

    def draw(self) -> Drawn:
        """Begin an iteration: the contexts it is about, with their weights."""
        if self.done == self.chosen:
            self.x_random = self.x.detach().clone()
        return self._weighted(self.rng)

    def take(
        self, drawn: Drawn, estimate: Estimate, evaluate: bool, checkpoints: Checkpoints | None, name: str = ""
    ) -> dict[str, Any]:
        """End an iteration: move x along an estimate. Returns the iteration's record."""
        x, gradient, context = self.x.detach(), estimate.gradient, drawn[0][0]
        measured: dict[str, float] = {}
        if self.constrained is not None:
            measured = self.constrained.measure(x)
            gradient = gradient + torch.stack([w * self.constrained.gradient(c) for c, w in drawn]).sum(0)
        record: dict[str, Any] = {
            "iteration": self.done,
            "sampled_return": estimate.leader_return,
            "env_steps": self.oracle.env_steps,
        }
        if len(drawn) == 1:
            record["context"] = context
        if estimate.standard_error is not None:
            record["standard_error"] = float(torch.linalg.vector_norm(estimate.standard_error))
        record |= estimate.metrics | measured
        if self.evaluate is not None:
            if evaluate:
                record["leader_return"] = self.evaluate(x)
            if self.oracle.last_response is not None and not self.oracle.follower.exact:
                record |= self.evaluate.suboptimality(self.oracle.last_response)
        record["gradient_norm"] = norm = self.leader.update.step(self.x, gradient)
        if not norm < float("inf"):
            kept = "" if checkpoints is None else f" The last good checkpoint is {checkpoints.last}."
            raise ConvergenceError(
                f"the gradient of iteration {self.done}{name} (context {context}) is not finite: norm {norm}. x = {x.tolist()}. "
                f"Lower the learning rate or clip the gradient.{kept}"
            )
        record["seconds"] = self.seconds
        self.history.append(record)
        self.done += 1
        return record

    def _generators(self, x: Tensor, contexts: list[Any]) -> list[np.random.Generator]:
        """The generators of an iteration's contexts: the run's, or one for each where responses may be made at the same time."""
        if len(contexts) == 1 or self.oracle.follower.exact or not isinstance(self.leader.estimator, PolicyEstimator):
            return [self.rng] * len(contexts)
        rngs = [np.random.default_rng(seeds) for seeds in self.rng.integers(2**32, size=(len(contexts), 4))]
        self.oracle.respond_ahead(x, contexts, rngs)
        return rngs

    def state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "x": self.x,
            "x0": self.x0,
            "x_random": self.x_random,
            "chosen": self.chosen,
            "rng": json.dumps(self.rng.bit_generator.state),
            "env_steps": self.oracle.env_steps,
            "seconds": self.seconds,
            "history": self.history.state(),
            "update": self.leader.update.state(),
            "estimator": self.leader.estimator.state(),
            "follower": self.oracle.follower.state(),
            "constraints": {} if self.constrained is None else self.constrained.state(),
            "evaluator": {} if self.evaluate is None else self.evaluate.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.done, self.chosen = state["done"], state["chosen"]
        self.x0, self.x_random = torch.from_numpy(state["x0"]), torch.from_numpy(state["x_random"])
        self.x = self.leader.update.start(torch.from_numpy(state["x"]), self.iterations, self.oracle.core.leader_space)
        self.leader.update.load_state(state["update"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.oracle.env_steps, self._before = state["env_steps"], state["seconds"]
        self.history.load_state(state["history"])
        self.leader.estimator.load_state(state["estimator"])
        self.oracle.follower.load_state(state["follower"])
        if self.evaluate is not None:
            self.evaluate.load_state(state["evaluator"])
        if self.constrained is not None:
            self.constrained.load_state(state["constraints"])

    def result(self) -> Result:
        found = self.x.detach().clone()
        return Result(
            x=found,
            x0=self.x0,
            x_random=self.x_random,
            history=self.history,
            leader_return=None if self.evaluate is None else self.evaluate(found),
            env_steps=self.oracle.env_steps,
            iterations=self.iterations,
            seconds=self.seconds,
            oracle=self.oracle,
        )


def generator(seed: Any) -> np.random.Generator:
    """A generator from a seed.

    Raises:
        OptionError: not a whole number, or negative.
    """
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise OptionError(f"seed is {seed!r}; expected a whole number, at least 0.") from error


def _context_sampler(core: Any, contexts: int | Literal["all"]) -> Callable[[np.random.Generator], list[tuple[Any, float]]]:
    """A function that draws the contexts of one iteration, with their weights."""
    if contexts == "all":
        if core.context_probabilities is None:
            raise OptionError(f'contexts="all" needs finitely many contexts; {type(core).__name__} has {core.context_space}.')
        first = int(core.context_space.start)
        every = [(first + i, float(p)) for i, p in enumerate(core.context_probabilities) if p > 0]
        return lambda rng: every
    if not isinstance(contexts, int) or contexts < 1:
        raise OptionError(f'contexts is {contexts!r}; expected a number of contexts per iteration, or "all".')
    if contexts == 1:
        return lambda rng: [(core.sample_context(rng), 1.0)]
    return lambda rng: [(core.sample_context(rng), 1.0 / contexts) for _ in range(contexts)]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The loop's tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
