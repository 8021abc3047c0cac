from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym.errors import ConvergenceError, OptionError, UnsupportedError
from leaders import AMD, HPGD, Constraint, ExactGradient, Leader, Progress, Result, optimize, optimize_many
from leaders.gradients import AdaptiveModelDesignEstimator, Estimator, ExactEstimator, MonteCarloEstimator
from leaders.gradients._exact_batch import DeviceBatch, ExactBatch
from leaders.gradients._monte_carlo_batch import MonteCarloBatch
from leaders.objectives import Min
from leaders.updates import Update
from tests.problems import four_rooms, overflowing_model, random_model, small_rooms

SEEDS = [0, 7, 3, 12, 5]
COLUMNS = ("sampled_return", "gradient_norm", "env_steps", "follower_iterations", "follower_residual", "leader_return")
REWARDS = ("reward", "leader_reward")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batch estimators that were made: their classes, None where runs went one after another."""
    made: list[Any] = []

    def spied(kind: type[Estimator]) -> Any:
        original = kind.batched

        def spy(*args: Any) -> Any:
            batch = original(*args)
            made.append(type(batch) if batch is not None else None)
            return batch

        return staticmethod(spy)

    for kind in (ExactEstimator, MonteCarloEstimator, AdaptiveModelDesignEstimator):
        monkeypatch.setattr(kind, "batched", spied(kind))
    return made


def follower(regularization: float = 0.05) -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(regularization)


def assert_equal_runs(runs: list[Result], alone: list[Result], tolerance: float = 0.0) -> None:
    assert len(runs) == len(alone)
    for run, other in zip(runs, alone, strict=True):
        for name in ("x", "x0", "x_random"):
            torch.testing.assert_close(getattr(run, name), getattr(other, name), rtol=tolerance, atol=tolerance)
        assert (run.env_steps, run.iterations) == (other.env_steps, other.iterations)
        assert run.leader_return == pytest.approx(other.leader_return, rel=tolerance, abs=tolerance)
        assert run.history.columns == other.history.columns
        for name in set(run.history.columns) - {"seconds"}:
            exact = name in ("context", "env_steps") or tolerance == 0.0
            np.testing.assert_allclose(run.history[name], other.history[name], rtol=0 if exact else tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("leader", "options"),
    [
        (partial(HPGD, 0.5, 500), {}),
        (partial(HPGD, 0.05, 300, bootstrap_truncated=True, optimizer="Adam"), {"contexts": 2}),
        (partial(ExactGradient, 1.0), {}),
        (partial(ExactGradient, 1.0, optimizer="RMSprop", schedule="cosine"), {"contexts": "all"}),
    ],
)
def test_each_seed_s_run_is_that_seed_s_run_alone(
    leader: Any, options: dict[str, Any], threads: int, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bits where rewards are elementwise functions of softmax(x), whatever the number of threads."""
    monkeypatch.setattr("leaders.gradients.batch.available_threads", lambda: threads)
    options = {"evaluate_every": 5, **options}
    runs = optimize_many(small_rooms(), leader(), follower(), 12, seeds=SEEDS, **options)
    assert batches == [ExactBatch if leader.func is ExactGradient else MonteCarloBatch]
    alone = [optimize(small_rooms(), leader(), follower(), 12, seed=seed, **options) for seed in SEEDS]
    assert_equal_runs(runs, alone)
    assert len({run.x.numpy().tobytes() for run in runs}) == len(SEEDS)


@pytest.mark.parametrize("leader", [partial(HPGD, 0.1, 400), partial(ExactGradient, 0.5)])
@pytest.mark.parametrize("moving", [("reward",), ("leader_reward",), REWARDS])
def test_functions_with_matrix_products_agree_to_rounding(leader: Any, moving: tuple[str, ...], batches: list[Any]) -> None:
    """Three contexts with successors and ends of their own, two discounts, nine actions."""
    model = random_model(4, moving=moving, actions=9, successors=2)
    assert model.discount != model.leader_discount
    runs = optimize_many(model, leader(), follower(0.3), 10, seeds=SEEDS, contexts=2)
    assert None not in batches
    alone = [optimize(model, leader(), follower(0.3), 10, seed=seed, contexts=2) for seed in SEEDS]
    assert_equal_runs(runs, alone, tolerance=1e-9)


def test_the_paper_s_problem_runs_at_once(batches: list[Any]) -> None:
    runs = optimize_many(four_rooms(), HPGD(0.5, 2000), follower(1e-3), 15, seeds=SEEDS)
    alone = [optimize(four_rooms(), HPGD(0.5, 2000), follower(1e-3), 15, seed=seed) for seed in SEEDS[:2]]
    assert batches == [MonteCarloBatch]
    assert_equal_runs(runs[:2], alone)


def test_half_of_many_runs_moves_while_threads_work_on_the_other(batches: list[Any]) -> None:
    """Nine seeds, in groups of five and four; an objective asks for the number of a run, and callbacks stop some."""

    def stop(progress: Progress) -> bool:
        return progress.run in (1, 6) and progress.iteration == 5 + progress.run

    options: dict[str, Any] = {"contexts": "all", "objective": Min(), "callback": stop, "evaluate_every": 1}
    runs = optimize_many(small_rooms(), ExactGradient(1.0), follower(), 15, seeds=range(9), **options)
    assert batches == [ExactBatch]
    assert [run.iterations for run in runs] == [15, 7, 15, 15, 15, 15, 12, 15, 15]
    del options["callback"]
    alone = [
        optimize(small_rooms(), ExactGradient(1.0), follower(), run.iterations, seed=i, **options) for i, run in enumerate(runs)
    ]
    for run, other in zip(runs, alone, strict=True):
        torch.testing.assert_close(run.x, other.x, rtol=0.0, atol=0.0)
    seeds = range(20, 31)
    sampled = optimize_many(small_rooms(), HPGD(0.5, 300), follower(), 10, seeds=seeds)
    assert_equal_runs(sampled, [optimize(small_rooms(), HPGD(0.5, 300), follower(), 10, seed=seed) for seed in seeds])


def test_environments_and_followers_are_compared_at_once(batches: list[Any]) -> None:
    """A batch for each pair of an environment and a follower, side by side; what is too few for one runs alone."""
    models = [small_rooms()] * 8 + [random_model(4, moving=REWARDS)] * 4 + [small_rooms()] * 2
    made = [follower(0.05)] * 4 + [follower(0.1)] * 10
    seeds = range(14)
    runs = optimize_many(models, HPGD(0.2, 300), made, 8, seeds=seeds, evaluate_every=3)
    assert batches == [MonteCarloBatch] * 3 + [None]
    alone = [
        optimize(model, HPGD(0.2, 300), one, 8, seed=seed, evaluate_every=3)
        for model, one, seed in zip(models, made, seeds, strict=True)
    ]
    assert_equal_runs(runs[:8] + runs[12:], alone[:8] + alone[12:])
    assert_equal_runs(runs[8:12], alone[8:12], tolerance=1e-9)  # matrix products
    assert [run.oracle.follower.regularization for run in runs] == [one.regularization for one in made]


def test_environments_of_one_leader_and_seed() -> None:
    seen: list[int] = []
    models = [small_rooms(), random_model(4, moving=REWARDS)]
    runs = optimize_many(models, ExactGradient(0.1), follower(), 2, seeds=[3], callback=lambda p: seen.append(p.run))
    assert_equal_runs(runs, [optimize(model, ExactGradient(0.1), follower(), 2, seed=3) for model in models])
    assert sorted(set(seen)) == [0, 1]


def test_step_sizes_are_compared_at_once(batches: list[Any]) -> None:
    rates = [0.01, 0.03, 0.1, 1.0]
    runs = optimize_many(small_rooms(), [ExactGradient(rate) for rate in rates], follower(), 10, seeds=[4])
    alone = [optimize(small_rooms(), ExactGradient(rate), follower(), 10, seed=4) for rate in rates]
    assert batches == [ExactBatch]
    assert_equal_runs(runs, alone)


@pytest.mark.parametrize(
    ("leader", "made", "options"),
    [
        (partial(HPGD, 0.1, 100), followers.SoftPolicyIteration, {}),  # transitions depend on x
        (partial(ExactGradient, 0.1), followers.SoftPolicyIteration, {"loss": lambda x, policy, context: x.square().sum()}),
        (partial(AMD, 0.1, 5), followers.SoftPolicyIteration, {}),
        (partial(HPGD, 0.1, 100, error_groups=2), followers.SoftPolicyIteration, {"contexts": 2}),
        (partial(HPGD, 0.1, 100), partial(followers.SoftQLearning, iterations=20), {"contexts": 2}),
    ],
)
def test_everything_else_runs_one_after_another(leader: Any, made: Any, options: dict[str, Any], batches: list[Any]) -> None:
    moving = REWARDS if "error_groups" in leader.keywords or isinstance(made, partial) else (*REWARDS, "transition")
    model = random_model(2, moving=moving)
    runs = optimize_many(model, leader(), made(0.3), 3, seeds=SEEDS[:4], **options)
    assert set(batches) <= {None}
    alone = [optimize(model, leader(), made(0.3), 3, seed=seed, **options) for seed in SEEDS[:4]]
    assert_equal_runs(runs, alone)


def test_a_few_runs_are_faster_one_after_another(batches: list[Any]) -> None:
    optimize_many(small_rooms(), ExactGradient(0.1), follower(), 2, seeds=range(3))
    assert batches == [None]


def test_leaders_that_differ_in_their_estimates_run_one_after_another(batches: list[Any]) -> None:
    budgets = (100, 100, 100, 200)
    runs = optimize_many(small_rooms(), [HPGD(0.1, steps, "monte_carlo") for steps in budgets], follower(), 3, seeds=[1] * 4)
    assert batches == [None]
    alone = [optimize(small_rooms(), HPGD(0.1, steps), follower(), 3, seed=1) for steps in budgets]
    assert_equal_runs(runs, alone)


def test_leaders_that_share_an_estimator_run_at_once(batches: list[Any]) -> None:
    estimator = MonteCarloEstimator(100)
    rates = (0.1, 0.2, 0.1, 0.3)
    runs = optimize_many(small_rooms(), [Leader(estimator, Update(rate)) for rate in rates], follower(), 3, seeds=[1] * 4)
    assert batches == [MonteCarloBatch]
    alone = [optimize(small_rooms(), Leader(MonteCarloEstimator(100), Update(rate)), follower(), 3, seed=1) for rate in rates]
    assert_equal_runs(runs, alone)


def test_a_subclass_that_estimates_otherwise_is_not_taken_for_its_base(batches: list[Any]) -> None:
    class Reversed(ExactEstimator):
        def estimate(self, *args: Any, **kwargs: Any) -> Any:
            estimate = super().estimate(*args, **kwargs)
            estimate.gradient = -estimate.gradient
            return estimate

    leaders = [Leader(Reversed(), Update(0.1)) for _ in range(4)]
    runs = optimize_many(small_rooms(), leaders, follower(), 3, seeds=[1] * 4)
    assert batches == [None]
    assert_equal_runs(runs, [optimize(small_rooms(), leaders[0], follower(), 3, seed=1)] * 4)


def test_callbacks_are_told_which_run_it_is() -> None:
    seen: list[Progress] = []
    for seeds in ([5, 6], [5, 6, 7, 8]):
        optimize_many(small_rooms(), ExactGradient(0.1), follower(0.3), 4, seeds=seeds, evaluate_every=3, callback=seen.append)
    assert [(p.run, p.iteration) for p in seen[:4]] == [(0, 0), (0, 3), (1, 0), (1, 3)]  # one after another
    assert [(p.run, p.iteration) for p in seen[4:]] == [(run, t) for t in (0, 3) for run in range(4)]  # at once


@pytest.mark.parametrize("seeds", [[5, 6], SEEDS])
def test_a_callback_stops_one_run_and_no_other(seeds: list[int]) -> None:
    """One after another, and at once."""

    def stop(progress: Progress) -> bool:
        return progress.run == 1 and progress.iteration == 2

    runs = optimize_many(small_rooms(), ExactGradient(0.1), follower(0.3), 6, seeds=seeds, evaluate_every=1, callback=stop)
    alone = optimize(small_rooms(), ExactGradient(0.1), follower(0.3), 3, seed=seeds[1], evaluate_every=1)
    assert [run.stopped for run in runs] == ["iterations", "callback", *["iterations"] * (len(seeds) - 2)]
    assert [run.iterations for run in runs] == [6, 3, *[6] * (len(seeds) - 2)]
    assert torch.equal(runs[1].x, alone.x)
    assert runs[1].leader_return == alone.leader_return
    whole = optimize(small_rooms(), ExactGradient(0.1), follower(0.3), 6, seed=seeds[0], evaluate_every=1)
    assert_equal_runs(runs[:1], [whole])


def test_all_runs_may_be_stopped() -> None:
    runs = optimize_many(
        small_rooms(), ExactGradient(0.1), follower(0.3), 100, seeds=SEEDS, evaluate_every=2, callback=lambda progress: True
    )
    assert [(run.stopped, run.iterations, len(run.history)) for run in runs] == [("callback", 1, 1)] * len(SEEDS)


@pytest.mark.parametrize("seeds", [[5, 6], SEEDS])
def test_each_result_has_an_oracle_and_a_follower_of_its_own(seeds: list[int]) -> None:
    mine = followers.SoftQLearning(0.3, iterations=20) if len(seeds) == 2 else follower(0.3)
    runs = optimize_many(small_rooms(), HPGD(0.1, 100), mine, 3, seeds=seeds)
    assert len({id(run.oracle) for run in runs}) == len(seeds)
    assert len({id(run.oracle.follower) for run in runs} | {id(mine)}) == len(seeds) + 1


def test_a_follower_that_cannot_be_copied_is_refused() -> None:
    class Unique(followers.SoftPolicyIteration):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a lock")

    with pytest.raises(UnsupportedError, match="Unique cannot be copied"):
        optimize_many(small_rooms(), ExactGradient(0.1), Unique(0.3), 3, seeds=[0, 1])


def test_constraints_belong_to_each_run(batches: list[Any]) -> None:
    constraint = Constraint("participation", "follower", at_least=1.0)
    model = random_model(moving=REWARDS)
    options: dict[str, Any] = {"constraints": [constraint], "x0": np.full(5, 0.4)}
    runs = optimize_many(model, ExactGradient(0.1), follower(0.3), 6, seeds=SEEDS, **options)
    assert batches == [ExactBatch]
    alone = [optimize(model, ExactGradient(0.1), follower(0.3), 6, seed=seed, **options) for seed in SEEDS]
    assert_equal_runs(runs, alone, tolerance=1e-9)


@pytest.mark.parametrize("contexts", [1, 2, "all"])
@pytest.mark.parametrize("successors", [None, 2])
def test_batched_lu_agrees_with_the_kernels(contexts: Any, successors: int | None, batches: list[Any]) -> None:
    """What runs on a GPU, on the CPU's tensors: transitions, ends and rewards move with x."""
    moving = (*REWARDS, "transition", "initial", "termination")
    model = random_model(3, moving=moving, successors=successors)
    options: dict[str, Any] = {"contexts": contexts, "evaluate_every": 4}
    runs = optimize_many(model, ExactGradient(0.3), follower(0.1), 12, seeds=SEEDS, device="cpu", **options)
    assert batches == [DeviceBatch]
    alone = [optimize(model, ExactGradient(0.3), follower(0.1), 12, seed=seed, **options) for seed in SEEDS]
    for run, other in zip(runs, alone, strict=True):
        torch.testing.assert_close(run.x, other.x, rtol=1e-9, atol=1e-9)
        for name in ("sampled_return", "gradient_norm", "leader_return"):
            np.testing.assert_allclose(run.history[name], other.history[name], rtol=1e-7)
    (one,) = optimize_many(model, ExactGradient(0.3), follower(0.1), 12, seeds=[SEEDS[1]], device="cpu", **options)
    torch.testing.assert_close(one.x, runs[1].x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("leader", "options", "message"),
    [
        (HPGD(), {"device": "cpu"}, "expected .cuda., or .cuda:N."),
        (ExactGradient(), {"device": "cpu", "loss": lambda x, policy, context: x.sum()}, "not for a general loss"),
        (ExactGradient(), {"device": "abacus"}, "cannot use device 'abacus'"),
        (ExactGradient(), {"device": "cpu", "oracle": partial(followers.TrajectoryOracle, compiled=False)}, "no other oracle"),
        (ExactGradient(), {"seeds": []}, "expected a list of whole numbers"),
        (ExactGradient(), {"seeds": "twelve"}, "expected a list of whole numbers"),
        (ExactGradient(), {"seeds": 3}, "expected a list of whole numbers"),
        (ExactGradient(), {"seeds": [0, -1]}, "seed is -1"),
        ([ExactGradient()] * 2, {"seeds": [0, 1, 2]}, "2 leaders, 3 seeds; expected as many"),
        ([], {}, "0 leaders; expected as many"),
        ([ExactGradient], {}, "expected a Leader"),
    ],
)
def test_what_cannot_work_is_refused(leader: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, UnsupportedError), match=message):
        optimize_many(small_rooms(), leader, follower(), 3, **options)


def test_a_run_that_fails_is_named() -> None:
    class Broken(Update):
        def step(self, x: Any, gradient: Any) -> float:
            return super().step(x, gradient * (float("nan") if float(x.detach()[0]) == 0.5 else 1.0))

    def start(update: Update) -> Leader:
        return Leader(MonteCarloEstimator(100), update)

    with pytest.raises(ConvergenceError, match="iteration 0 of run 1"):
        optimize_many(
            random_model(moving=REWARDS),
            [start(Update(0.1)), start(Broken(0.1)), start(Update(0.1)), start(Update(0.1))],
            follower(0.3),
            3,
            seeds=[0] * 4,
            x0=np.full(5, 0.5),
        )
    models = [random_model(moving=REWARDS, dim=1)] * 4 + [overflowing_model()] * 5
    with pytest.raises(ConvergenceError, match="in context 0 of run 4"):
        optimize_many(models, ExactGradient(), follower(0.3), 3, seeds=range(9), x0=[1.0])
    with pytest.raises(ConvergenceError, match="in context 0 of run 0"):
        optimize_many(overflowing_model(), ExactGradient(), follower(0.3), 3, seeds=SEEDS, x0=[1.0])
