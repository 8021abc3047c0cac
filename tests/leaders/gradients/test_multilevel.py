from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.gradients import GeometricEstimator, MonteCarloEstimator, MultilevelEstimator
from tests.problems import F64, random_model, random_x

MODEL = random_model(0, contexts=1, states=4, dim=3, discount=0.5, leader_discount=0.6)


def _follower(iterations: int = 100) -> followers.SoftQLearning:
    return followers.SoftQLearning(1.0, iterations=iterations, warm_start=False)


def _draws(estimator: Any, follower: Any, n: int, model: Any = MODEL) -> tuple[torch.Tensor, float]:
    """n independent estimates (n, d), and the follower's iterations per estimate."""
    oracle = followers.TrajectoryOracle(model, follower)
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    estimates = [estimator.estimate(oracle, random_x(3), 0, rng) for _ in range(n)]
    return torch.stack([e.gradient for e in estimates]), float(np.mean([e.metrics["follower_iterations"] for e in estimates]))


@pytest.mark.parametrize("levels", [2, 5])
def test_the_mean_is_that_of_the_plain_estimator_after_all_iterations(levels: int) -> None:
    n = 800
    many, iterations = _draws(MultilevelEstimator(levels, samples=300), _follower(), n)
    plain, _ = _draws(GeometricEstimator(300), _follower(2**levels), n)
    early, _ = _draws(GeometricEstimator(300), _follower(2), n)
    error = ((many.var(0) + plain.var(0)) / n).sqrt()
    assert float(((many.mean(0) - plain.mean(0)).abs() / error).max()) < 4
    if levels > 2:  # the levels matter: dF after two iterations is another mean
        assert float(((early.mean(0) - plain.mean(0)).abs() / ((early.var(0) + plain.var(0)) / n).sqrt()).max()) > 8
    expected = 2 * (levels - 1) / (1 - 0.5 ** (levels - 1))
    assert iterations == pytest.approx(expected, rel=0.1)


def test_probabilities_are_those_of_the_levels_used() -> None:
    """The printed p_k, normalised over k = 1..K although k = K is never used, would lose mass 2^-K / (1 - 2^-K)."""
    np.testing.assert_allclose(MultilevelEstimator(4).probabilities, np.array([4, 2, 1]) / 7)
    assert MultilevelEstimator(12).probabilities.sum() == pytest.approx(1.0)


def test_the_pair_shares_its_random_numbers() -> None:
    """Where the follower stands still from level to level, nothing is left of the difference."""

    class Still(followers.SoftQLearning):
        def start(self, task: followers.Task, rng: np.random.Generator) -> Any:
            run = super().start(task, rng)
            run._advance = lambda iterations, tolerance: iterations  # type: ignore[method-assign]
            return run

    estimator = MultilevelEstimator(5, samples=50)
    oracle = followers.TrajectoryOracle(MODEL, Still(1.0, iterations=1))
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    multilevel = torch.stack([estimator.estimate(oracle, random_x(3), 0, rng).gradient for _ in range(50)])
    plain, _ = _draws(GeometricEstimator(50), Still(1.0, iterations=1), 50)
    assert float(multilevel.var(0).sum()) < 2 * float(plain.var(0).sum())


def test_runs_give_a_standard_error() -> None:
    oracle = followers.TrajectoryOracle(MODEL, _follower())
    estimator = MultilevelEstimator(4, samples=100, runs=30)
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    estimates = [estimator.estimate(oracle, random_x(3), 0, rng) for _ in range(60)]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    reported = torch.stack([e.standard_error for e in estimates if e.standard_error is not None]).square().mean(0).sqrt()
    torch.testing.assert_close(reported, spread, rtol=0.35, atol=0.0)
    assert oracle.env_steps == sum(e.env_steps for e in estimates) == 0
    assert all(e.model_draws > 0 for e in estimates)


def test_other_inner_estimators() -> None:
    n = 300
    many, _ = _draws(MultilevelEstimator(4, inner=MonteCarloEstimator(400)), _follower(), n)
    plain, _ = _draws(MonteCarloEstimator(400), _follower(16), n)
    error = ((many.var(0) + plain.var(0)) / n).sqrt()
    assert float(((many.mean(0) - plain.mean(0)).abs() / error).max()) < 4


def test_the_leader_runs_and_repeats() -> None:
    leader = leaders.HPGD(0.05, estimator="multilevel", levels=6, samples=200, runs=4)
    runs = [leaders.optimize(MODEL, leader, _follower(), 10, seed=3, x0=np.zeros(3)) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert (runs[0].history["follower_iterations"] >= 4).all()
    assert (runs[0].history["standard_error"] > 0).all()


def test_a_loss_through_the_inner_estimator() -> None:
    oracle = followers.TrajectoryOracle(MODEL, _follower())
    estimator = MultilevelEstimator(3, samples=100)
    estimator.bind(oracle, lambda x, policy, context: (policy**2).sum() + x.sum())
    estimate = estimator.estimate(oracle, torch.zeros(3, dtype=F64), 0, np.random.default_rng(0))
    assert estimate.leader_return < 0.0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"SoftPolicyIteration cannot; use SoftQLearning"):
        leaders.optimize(MODEL, leaders.HPGD(estimator="multilevel"), followers.SoftPolicyIteration(1.0), 3)
    with pytest.raises(errors.OptionError, match="levels is 1"):
        leaders.HPGD(estimator="multilevel", levels=1)
    with pytest.raises(errors.OptionError, match="levels is an option of estimator='multilevel'"):
        leaders.HPGD(levels=4)
