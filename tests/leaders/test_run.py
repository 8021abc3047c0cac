from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import followers
import leaders
from bocmdp_gym import errors
from leaders.run import _kept_iterates
from tests.problems import F64, random_model


def _follower(regularization: float = 1e-3) -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(regularization=regularization)


def test_x_random_is_an_iterate() -> None:
    model = random_model(1, moving=("reward", "leader_reward"), terminating=False)
    iterates = []
    result = leaders.optimize(
        model,
        leaders.ExactGradient(learning_rate=0.1),
        _follower(0.5),
        20,
        evaluate_every=1,
        x0=np.zeros(5),
        callback=lambda progress: iterates.append(progress.x.clone()),
    )
    candidates = [torch.zeros(5, dtype=F64), *iterates[:-1]]
    assert any(torch.equal(result.x_random, x) for x in candidates)
    assert torch.equal(result.x, iterates[-1])


def test_x_random_is_uniform_over_the_iterates() -> None:
    model = random_model(1, moving=("reward", "leader_reward"), terminating=False, contexts=1)
    leader, follower = leaders.ExactGradient(learning_rate=0.1), _follower(0.5)
    iterates = [np.zeros(5)]
    leaders.optimize(
        model, leader, follower, 4, evaluate_every=1, x0=np.zeros(5), callback=lambda p: iterates.append(p.x.numpy().copy())
    )
    drawn = [leaders.optimize(model, leader, follower, 4, seed=seed, x0=np.zeros(5)).x_random.numpy() for seed in range(400)]
    counts = [sum(np.allclose(x, iterate) for x in drawn) for iterate in iterates[:4]]
    assert sum(counts) == 400
    assert chisquare(counts).pvalue > 1e-3


def test_several_contexts_per_iteration_are_averaged() -> None:
    model = random_model(1, moving=("reward", "leader_reward"), contexts=1)
    leader = leaders.ExactGradient(learning_rate=0.1, max_gradient_norm=None)
    one, three = (leaders.optimize(model, leader, _follower(0.5), 1, x0=np.zeros(5), contexts=n) for n in (1, 3))
    torch.testing.assert_close(one.x, three.x)


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    model = random_model(4)
    leader = leaders.ExactGradient(learning_rate=0.1)

    class Broken(type(leader.estimator)):  # type: ignore[misc]
        def estimate(self, oracle, x, context, rng):  # type: ignore[no-untyped-def]
            estimate = super().estimate(oracle, x, context, rng)
            estimate.gradient[0] = float("nan")
            return estimate

    leader.estimator = Broken()
    with pytest.raises(errors.ConvergenceError, match="gradient of iteration 0"):
        leaders.optimize(model, leader, _follower(0.5), 5)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_x_random_is_uniform_where_a_run_is_stopped(stop: int) -> None:
    """The last kept iterate among those a run has reached, whatever the run had planned."""
    rngs = [np.random.default_rng(seed) for seed in range(2000)]
    kept = [_kept_iterates(int(rng.integers(5)), rng) for rng in rngs]
    reached = [max(k for k in one if k < stop) for one in kept]
    assert chisquare(np.bincount(reached, minlength=stop)).pvalue > 1e-3
    assert all(0 in one for one in kept)


def test_a_stopped_run_has_a_random_iterate_of_those_it_reached() -> None:
    model = random_model(1, moving=("reward", "leader_reward"), terminating=False, contexts=1)
    leader, follower = leaders.ExactGradient(learning_rate=0.1), _follower(0.5)
    whole: list[torch.Tensor] = [torch.zeros(5, dtype=F64)]
    leaders.optimize(model, leader, follower, 3, evaluate_every=1, x0=np.zeros(5), callback=lambda p: whole.append(p.x.clone()))
    for seed in range(12):
        stopped = leaders.optimize(
            model, leader, follower, 50, seed=seed, evaluate_every=1, x0=np.zeros(5), callback=lambda p: p.iteration == 2
        )
        assert stopped.iterations == 3
        assert any(torch.equal(stopped.x_random, x) for x in whole[:3])
