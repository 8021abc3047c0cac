from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.callbacks import BaseCallback

import followers
import leaders
from bocmdp_gym import errors
from followers import SB3Follower, TrajectoryOracle
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import QUICK, quick, respond, rng


def test_any_class_is_an_algorithm() -> None:
    class MyDQN(DQN):
        pass

    follower = SB3Follower(MyDQN, **QUICK["DQN"])
    respond(follower)
    assert isinstance(follower._learners[0].model, MyDQN)
    assert SB3Follower(A2C, 10).algorithm is A2C


@pytest.mark.parametrize(
    ("algorithm", "env", "message"),
    [
        ("DQN", Point(), "DQN cannot take this environment"),
        ("SAC", bandit(), "SAC cannot take this environment"),
    ],
)
def test_an_algorithm_that_cannot_act_is_refused_before_anything_runs(algorithm: str, env: Any, message: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=message):
        TrajectoryOracle(env, quick(algorithm))


def test_an_algorithms_own_refusal_comes_through() -> None:
    with pytest.raises(errors.OptionError, match="n_steps is 3"):
        TrajectoryOracle(bandit(), quick("SoftDQN", n_steps=3))


@pytest.mark.parametrize(
    ("algorithm", "options", "greedy"),
    [
        ("DQN", {}, True),
        ("DQN", {"softmax_temperature": 0.1}, False),
        ("QRDQN", {}, True),
        ("TD3", {}, True),
        ("DDPG", {}, True),
        ("ARS", {}, True),
        ("TQC", {}, False),
        ("CrossQ", {}, False),
        ("SAC", {}, False),
        ("PPO", {}, False),
        ("SoftDQN", {"regularization": 0.1}, False),
    ],
)
def test_what_answers_with_the_best_action_alone_says_so(algorithm: str, options: dict[str, Any], greedy: bool) -> None:
    """So that no hypergradient takes its policy, whose probabilities are 0 and 1, for one that never reacts."""
    assert SB3Follower(algorithm, 1000, **options).greedy is greedy


def test_ars_compares_discounted_returns() -> None:
    """What episodes paid, as it is logged, is sum gamma^t r_t: with rewards of 1, (1 - gamma^n) / (1 - gamma) of n steps."""
    seen: list[tuple[float, int]] = []

    class Episodes(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.extend((one["r"], one["l"]) for one in self.model.ep_info_buffer)  # type: ignore[union-attr]

    for n_envs in (1, 3):  # one in a Monitor, several in a VecMonitor
        seen.clear()
        follower = quick("ARS", callback=Episodes(), n_envs=n_envs, zero_policy=True)
        oracle = TrajectoryOracle(bandit(discount=0.5), follower)
        policy = oracle.respond([1.0, 1.0], 0, rng(0))  # an untrained policy's best action is one and the same in every episode
        assert set(np.unique(policy.table)) == {0.0, 1.0}
        always = [(r, n) for r, n in seen if r > 1.0 and abs(r - 2.0 * (1.0 - 0.5**n)) < 1e-6]
        assert len(always) > 3
        assert max(r for r, _ in seen) <= 2.0


def test_ars_solves_a_problem() -> None:
    follower = quick("ARS", total_timesteps=1500, n_delta=4, learning_rate=0.2, delta_std=0.2, n_eval_episodes=3)
    oracle = TrajectoryOracle(bandit(), follower)
    for context in range(2):
        assert (oracle.respond(X, context, rng(0)).table[:, context] == 1.0).all()


_REGULARIZED: dict[str, Any] = {
    "SoftDQN": lambda lam: quick("SoftDQN", regularization=lam),
    "SAC": lambda lam: followers.SACFollower(lam, **QUICK["SAC"]),
    "TQC": lambda lam: quick("TQC", ent_coef=lam),
    "CrossQ": lambda lam: quick("CrossQ", ent_coef=lam),
}


@pytest.mark.parametrize("algorithm", list(_REGULARIZED))
def test_a_learner_goes_on_with_another_lambda(algorithm: str, tmp_path: Path) -> None:
    """A response at another lambda is that of a follower of that lambda which had learnt the same before."""
    make, discrete = _REGULARIZED[algorithm], algorithm == "SoftDQN"
    x = X if discrete else [0.5]

    def oracle_of(follower: Any) -> TrajectoryOracle:
        return TrajectoryOracle(bandit() if discrete else Point(), follower)

    def answer(oracle: TrajectoryOracle, seed: int) -> Any:
        policy = oracle.respond(x, 0, rng(seed))
        return policy.table if discrete else policy.act_batch(np.linspace(-1, 1, 9, dtype=np.float32)[:, None], rng(0))

    changed, other, same = make(0.1), make(2.0), make(0.1)
    oracle = oracle_of(changed)
    assert changed.anneals
    answer(oracle, 0)
    changed.save(tmp_path)
    oracles = [oracle_of(follower) for follower in (other, same)]
    other.load(tmp_path)
    same.load(tmp_path)
    changed.regularization = 2.0
    found, (expected, unchanged) = answer(oracle, 1), [answer(one, 1) for one in oracles]
    np.testing.assert_array_equal(found, expected)
    assert (found != unchanged).any()
    changed.regularization = same.regularization = 0.1
    assert (answer(oracle, 2) != answer(oracles[0], 2)).any()


def test_a_run_anneals_neural_followers() -> None:
    schedule, leader = leaders.Annealing(1.0), leaders.HPGD(env_steps=100)
    soft_dqn, sac = _REGULARIZED["SoftDQN"](0.1), _REGULARIZED["SAC"](0.1)
    runs: list[Any] = [(bandit(), leader, soft_dqn, X), (Point(), leaders.ZeroOrder(0.1, env_steps=20), sac, [0.5])]
    for env, leader, follower, x in runs:
        result = leaders.optimize(env, leader, follower, 3, x0=x, seed=0, regularization_schedule=schedule)
        assert result.history["regularization"].tolist() == [schedule.at(t, 3, 0.1) for t in range(3)]
        assert follower.regularization == 0.1
    with pytest.raises(errors.UnsupportedError, match="SoftDQNFollower or SACFollower"):
        leaders.optimize(bandit(), leaders.HPGD(regularization=0.1), quick("PPO"), 1, regularization_schedule=schedule)
