from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.annealing import Annealing
from leaders.checkpoints import Checkpoints
from leaders.train import main
from tests.problems import four_rooms, random_model, random_x, small_rooms


def test_the_schedule_ends_at_the_follower_s_own() -> None:
    schedule = Annealing(1.0, share=0.5)
    found = [schedule.at(t, 20, 1e-2) for t in range(20)]
    assert found[0] == pytest.approx(1.0)
    np.testing.assert_allclose(np.diff(np.log(found[:11])), np.log(1e-2) / 10)
    assert found[10:] == [1e-2] * 10
    assert Annealing(1e-3).at(0, 5, 1e-2) == pytest.approx(1e-3)  # it may rise


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        (partial(leaders.ExactGradient, 0.1), followers.SoftPolicyIteration),
        (partial(leaders.HPGD, 0.1, 300), followers.SoftPolicyIteration),
        (partial(leaders.HPGD, 0.1, estimator="geometric", samples=100), followers.SoftPolicyIteration),
        (
            partial(leaders.HPGD, 0.1, estimator="multilevel", samples=50, levels=3),
            partial(followers.SoftQLearning, iterations=9),
        ),
        (partial(leaders.ZeroOrder, 0.1), partial(followers.NaturalPolicyGradient, iterations=5)),
        (partial(leaders.AMD, 0.1, 20), partial(followers.SoftValueIteration, tolerance=1e-8)),
    ],
)
def test_an_iteration_is_that_of_its_lambda(leader: Any, follower: Any) -> None:
    """The first gradient of a run that anneals is that of a run at the first lambda; afterwards all is as it was before."""
    model, x = random_model(1, discount=0.6), random_x(5)
    anneals, plain = follower(0.3), follower(2.0)
    options: dict[str, Any] = {"iterations": 3, "x0": x, "seed": 3}
    annealed = leader()
    found = leaders.optimize(model, annealed, anneals, regularization_schedule=Annealing(2.0), **options)
    expected = leaders.optimize(model, leader(), plain, **options)
    assert found.history["gradient_norm"][0] == expected.history["gradient_norm"][0]
    assert found.history["gradient_norm"][1] != expected.history["gradient_norm"][1]
    assert found.history["regularization"].tolist() == [Annealing(2.0).at(t, 3, 0.3) for t in range(3)]
    assert anneals.regularization == annealed.estimator.regularization == 0.3
    final = leaders.optimize(model, leader(), follower(0.3), iterations=1, x0=found.x)
    assert found.leader_return == pytest.approx(final.history["leader_return"][0], rel=1e-7)


def test_warm_starts_of_another_lambda_are_right() -> None:
    model, x = random_model(2), random_x(5)
    options: dict[str, Any] = {"contexts": "all", "x0": x, "seed": 0}
    leader = partial(leaders.ExactGradient, 1e-13)  # it hardly moves: gradients are those at x, at each lambda
    run = leaders.optimize(
        model, leader(), followers.SoftPolicyIteration(0.05), 8, regularization_schedule=Annealing(3.0), **options
    )
    for lam, norm in zip(run.history["regularization"], run.history["gradient_norm"], strict=True):
        cold = leaders.optimize(model, leader(), followers.SoftPolicyIteration(float(lam)), 1, **options)
        assert norm == pytest.approx(cold.history["gradient_norm"][0], rel=1e-6)


def test_distances_of_learners_are_from_the_optimum_of_their_lambda() -> None:
    model, follower = random_model(1, discount=0.5), followers.SoftValueIteration(0.1, tolerance=1e-7)
    assert not follower.exact
    result = leaders.optimize(model, leaders.ZeroOrder(1e-9), follower, 4, regularization_schedule=Annealing(5.0))
    assert (result.history["follower_delta"] < 1e-5).all()


def test_annealing_leaves_the_basin_where_exact_ascent_stays_on_four_rooms() -> None:
    """Penalty cost 1, lambda 0.001, 400 steps of 1: 0.495 without, 0.833 with a lambda that falls from 0.01."""

    def run(schedule: Any) -> float:
        leader, follower = leaders.ExactGradient(1.0), followers.SoftPolicyIteration(1e-3)
        result = leaders.optimize(
            four_rooms(), leader, follower, 400, contexts="all", regularization_schedule=schedule, progress=False
        )
        assert result.leader_return is not None
        return result.leader_return

    assert run(None) == pytest.approx(0.495, abs=0.02)
    assert run(Annealing(0.01)) == pytest.approx(0.833, abs=0.02)


def test_many_runs_are_those_runs() -> None:
    options: dict[str, Any] = {"contexts": "all", "regularization_schedule": Annealing(0.5)}
    follower, seeds = followers.SoftPolicyIteration(0.05), [0, 1, 2, 3]
    runs = leaders.optimize_many(small_rooms(), leaders.ExactGradient(1.0), follower, 5, seeds=seeds, **options)
    for run, seed in zip(runs, seeds, strict=True):
        alone = leaders.optimize(small_rooms(), leaders.ExactGradient(1.0), follower, 5, seed=seed, **options)
        assert torch.equal(run.x, alone.x)
    with pytest.raises(errors.UnsupportedError, match="one lambda"):
        leaders.optimize_many(small_rooms(), leaders.ExactGradient(1.0), follower, 5, seeds=seeds, device="cpu", **options)


def falling(iteration: int, iterations: int) -> float:
    return 0.1 + 1.0 / (1 + iteration)


@pytest.mark.parametrize("schedule", [Annealing(1.0), falling])
def test_a_resumed_run_is_the_run(schedule: Any, tmp_path: Path) -> None:
    def run(schedule: Any = schedule, **options: Any) -> leaders.Result:
        leader, follower = leaders.HPGD(0.5, 300), followers.SoftPolicyIteration(0.05)
        return leaders.optimize(
            small_rooms(), leader, follower, 12, seed=2, evaluate_every=4, regularization_schedule=schedule, **options
        )

    def stop(progress: leaders.Progress) -> None:
        if progress.iteration == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoints=Checkpoints(tmp_path, 5), callback=stop)
    with pytest.raises(errors.CheckpointError, match="regularization_schedule"):
        run(Annealing(2.0), checkpoints=Checkpoints(tmp_path, 5), resume=True)
    whole, resumed = run(), run(checkpoints=Checkpoints(tmp_path, 5), resume=True)
    assert torch.equal(whole.x, resumed.x)
    for name in set(whole.history.columns) - {"seconds"}:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])


def test_what_cannot_be_annealed_is_refused() -> None:
    model, leader = random_model(0), leaders.HPGD(regularization=0.1)
    for follower in (followers.LinearProgramming(), followers.CallableFollower(lambda observation: 0)):
        with pytest.raises(errors.UnsupportedError, match=type(follower).__name__):
            leaders.optimize(model, leader, follower, 1, regularization_schedule=Annealing(1.0))
    planner = followers.SoftPolicyIteration(0.5)
    wrong: Any
    for wrong, match in ((0.1, "expected leaders.Annealing"), (Annealing, "expected leaders.Annealing"), (min, "returned 0")):
        with pytest.raises(errors.OptionError, match=match):
            leaders.optimize(model, leaders.ExactGradient(), planner, 2, regularization_schedule=wrong)
    with pytest.raises(errors.RegularizationError):
        Annealing(0.0)
    with pytest.raises(errors.OptionError, match="share is"):
        Annealing(1.0, share=0.0)


def test_the_command_line_anneals(tmp_path: Path) -> None:
    options = ["--iterations", "3", "--leader", "exact", "--no-progress", "--evaluate-every", "1", "--out", str(tmp_path / "run")]
    assert main(["four-rooms", "--regularization-from", "0.1", *options]) == 0
    header, *rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    place = header.split(",").index("regularization")
    found = [float(row.split(",")[place]) for row in rows]
    assert found == pytest.approx([Annealing(0.1).at(t, 3, 1e-3) for t in range(3)])
