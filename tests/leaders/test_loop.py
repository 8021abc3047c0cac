from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import followers
import leaders
from bocmdp_gym import errors
from tests.problems import F64, four_rooms, random_model


def _follower(regularization: float = 1e-3) -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(regularization=regularization)


@pytest.mark.parametrize(("regularization", "penalty_cost", "expected"), [(0.001, 1.0, 0.58), (0.003, 3.0, 0.39)])
def test_exact_ascent_lands_on_the_published_amd_column(regularization: float, penalty_cost: float, expected: float) -> None:
    env = four_rooms(penalty_cost=penalty_cost)
    result = leaders.optimize(env, leaders.ExactGradient(learning_rate=1.0), _follower(regularization), 3000, seed=0)
    assert result.leader_return == pytest.approx(expected, abs=0.01)


def test_hpgd_improves_the_leader() -> None:
    env = four_rooms()
    result = leaders.optimize(env, leaders.HPGD(learning_rate=0.5, env_steps=5000), _follower(), 400, seed=0)
    returns = result.history["leader_return"]
    assert result.leader_return is not None
    assert result.leader_return > returns[0] + 0.1
    assert result.env_steps >= 400 * 5000
    assert len(result.history) == 400
    assert set(result.history["context"]) == {0, 1}


def test_equal_seeds_give_equal_runs_bit_for_bit() -> None:
    env = four_rooms()
    follower = _follower()
    runs = [leaders.optimize(env, leaders.HPGD(env_steps=2000), follower, 60, seed=3) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert torch.equal(runs[0].x_random, runs[1].x_random)
    for column in ("sampled_return", "gradient_norm", "context", "env_steps"):
        np.testing.assert_array_equal(runs[0].history[column], runs[1].history[column])
    other = leaders.optimize(env, leaders.HPGD(env_steps=2000), follower, 60, seed=4)
    assert not torch.equal(runs[0].x, other.x)


def test_equal_seeds_give_equal_runs_in_a_new_process() -> None:
    script = (
        "import gymnasium as gym, bocmdp_gym, followers, leaders\n"
        "env = gym.make('bocmdp/FourRooms-v0', slip_probability=0.44)\n"
        "r = leaders.optimize(env, leaders.HPGD(env_steps=2000), followers.SoftPolicyIteration(1e-3), 40, seed=3)\n"
        "print(r.x.numpy().tobytes().hex())\n"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    here = leaders.optimize(four_rooms(), leaders.HPGD(env_steps=2000), _follower(), 40, seed=3)
    assert outputs == {here.x.numpy().tobytes().hex() + "\n"}


def test_evaluation_does_not_change_the_run() -> None:
    env = four_rooms()
    often = leaders.optimize(env, leaders.HPGD(env_steps=1000), _follower(), 30, seed=1, evaluate_every=1)
    seldom = leaders.optimize(env, leaders.HPGD(env_steps=1000), _follower(), 30, seed=1, evaluate_every=30)
    assert torch.equal(often.x, seldom.x)


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


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", torch.optim.RMSprop])
def test_any_torch_optimiser_updates_x(optimizer: object) -> None:
    model = random_model(2)
    leader = leaders.ExactGradient(learning_rate=0.02, optimizer=optimizer)  # type: ignore[arg-type]
    result = leaders.optimize(model, leader, _follower(0.5), 100, evaluate_every=50)
    returns = result.history["leader_return"]
    assert result.leader_return is not None
    assert result.leader_return > returns[0]


def test_plain_sgd_equals_torch_sgd() -> None:
    model = random_model(2)
    plain = leaders.optimize(model, leaders.ExactGradient(learning_rate=0.02), _follower(0.5), 20, seed=1)
    torch_sgd = leaders.ExactGradient(learning_rate=0.02, momentum=0.0)
    through_torch = leaders.optimize(model, torch_sgd, _follower(0.5), 20, seed=1)
    torch.testing.assert_close(plain.x, through_torch.x, rtol=1e-14, atol=1e-15)


def test_loss_is_minimised() -> None:
    model = random_model(3, moving=("reward", "leader_reward"))
    result = leaders.optimize(
        model,
        leaders.ExactGradient(learning_rate=0.05),
        _follower(1.0),
        200,
        loss=lambda x, policy, context: (x**2).sum() / 2 + (policy**2).sum() / 2,
        evaluate_every=50,
    )
    values = result.history["leader_return"]  # minus the loss
    assert result.leader_return is not None
    assert result.leader_return > values[0]


def test_bad_settings_are_refused_before_anything_runs() -> None:
    env = four_rooms()
    with pytest.raises(errors.OptionError, match="iterations"):
        leaders.optimize(env, leaders.HPGD(), _follower(), 0)
    with pytest.raises(errors.UnsupportedError, match="general loss"):
        leaders.optimize(env, leaders.HPGD(), _follower(), 5, loss=lambda x, policy, context: x.sum())
    with pytest.raises(errors.OptionError, match="same lambda"):
        leaders.optimize(env, leaders.HPGD(regularization=0.1), _follower(), 5)
    with pytest.raises(errors.LeaderParameterError, match="shape"):
        leaders.optimize(env, leaders.HPGD(), _follower(), 5, x0=np.zeros(3))
    with pytest.raises(errors.OptionError, match="learning_rate"):
        leaders.HPGD(learning_rate=0.0)
    with pytest.raises(errors.OptionError, match="Did you mean 'monte_carlo'"):
        leaders.HPGD(estimator="montecarlo")
    with pytest.raises(errors.OptionError, match="Did you mean 'Adam'"):
        leaders.HPGD(optimizer="adam")


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


@pytest.mark.parametrize(("options", "message"), [({"seed": -1}, "seed is -1"), ({"iterations": 2.5}, "iterations is 2.5")])
def test_odd_numbers_are_refused(options: dict[str, object], message: str) -> None:
    settings = {"iterations": 3, **options}
    with pytest.raises(errors.OptionError, match=message):
        leaders.optimize(random_model(1), leaders.ExactGradient(), _follower(0.5), **settings)  # type: ignore[arg-type]
