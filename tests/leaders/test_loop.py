from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders import loop
from tests.problems import four_rooms, random_model, small_rooms


def _follower(regularization: float = 1e-3) -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(regularization=regularization)


def test_callbacks_come_by_count_or_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first iteration, after the last and, between them, every so many or after so long; True stops the run."""
    seen: list[int] = []

    def run(every: Any) -> list[int]:
        seen.clear()
        see = lambda progress: seen.append(progress.iteration)  # noqa: E731
        follower = followers.SoftPolicyIteration(0.1)
        leaders.optimize(
            small_rooms(), leaders.ExactGradient(), follower, 8, evaluate_every=3, callback=see, callback_every=every
        )
        return list(seen)

    assert run(None) == [0, 3, 6, 7]
    assert run(2) == [0, 2, 4, 6, 7]
    assert run(1e3) == [0, 7]
    seconds = iter(np.arange(0.0, 8.0, 1.0).tolist())
    monkeypatch.setattr(loop, "monotonic", lambda: next(seconds))
    assert run(timedelta(seconds=2.5)) == [0, 3, 6, 7]
    monkeypatch.undo()
    for wrong in (0, 1.5, timedelta(0), "10s", True):
        with pytest.raises(errors.OptionError, match="expected a positive number of iterations, or a time"):
            run(wrong)
    follower = followers.SoftPolicyIteration(0.1)
    many = leaders.optimize_many(
        small_rooms(), leaders.ExactGradient(), follower, 6, seeds=range(4), callback_every=2,
        callback=lambda progress: progress.iteration == 2 and progress.run == 1,
    )  # fmt: skip
    assert [one.iterations for one in many] == [6, 3, 6, 6]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": "one"}, "seed is 'one'"),
        ({"iterations": 2.5}, "iterations is 2.5"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"contexts": 0}, "contexts is 0"),
        ({"contexts": "every"}, "contexts is 'every'"),
        ({"seed": [0, 1]}, r"optimize_many\(..., seeds="),
        ({"seed": range(3)}, "optimize_many"),
        ({"seeds": [0, 1]}, "leaders.optimize_many has it"),
        ({"device": "cpu"}, "leaders.optimize_many has it"),
        ({"leader": [leaders.ExactGradient()]}, "optimize_many"),
        ({"evaluate_evry": 3}, "Did you mean 'evaluate_every'"),
        ({"leader": leaders.HPGD}, "leader is the class HPGD; expected a Leader"),
        ({"follower": followers.SoftPolicyIteration}, "follower is the class SoftPolicyIteration; expected a Follower"),
        ({"leader": _follower(), "follower": leaders.HPGD()}, "seem to be swapped"),
    ],
)
def test_what_is_no_run_is_refused(options: dict[str, object], message: str) -> None:
    settings: dict[str, Any] = {"leader": leaders.ExactGradient(), "follower": _follower(0.5), "iterations": 3, **options}
    with pytest.raises(errors.OptionError, match=message):
        leaders.optimize(random_model(1), **settings)


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_stops_the_run(answer: object) -> None:
    env, leader, follower = four_rooms(), leaders.ExactGradient(learning_rate=0.5), _follower()
    result = leaders.optimize(
        env, leader, follower, 20, seed=1, evaluate_every=5, callback=lambda p: answer if p.iteration == 10 else None
    )
    assert (result.stopped, result.iterations, len(result.history)) == ("callback", 11, 11)
    shorter = leaders.optimize(env, leader, follower, 11, seed=1, evaluate_every=5)
    assert shorter.stopped == "iterations"
    assert result.leader_return == shorter.leader_return
    assert torch.equal(result.x, shorter.x)


def test_only_true_stops_a_run() -> None:
    result = leaders.optimize(random_model(1), leaders.ExactGradient(0.1), _follower(0.5), 3, evaluate_every=1, callback=id)
    assert (result.stopped, result.iterations) == ("iterations", 3)
    last = leaders.optimize(random_model(1), leaders.ExactGradient(0.1), _follower(0.5), 3, callback=lambda p: p.iteration == 2)
    assert last.stopped == "iterations"  # it had made them all
