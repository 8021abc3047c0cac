from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

import bocmdp_gym
from bocmdp_gym import errors
from followers import SoftDQN, SoftDQNFollower, TrajectoryOracle, check_follower
from leaders.gradients.exact import leader_values
from tests.followers.problems import X, bandit

#: A linear network on one-hot states is a table, which converges to the optimum itself.
TABLE: dict[str, Any] = {
    "policy_kwargs": {"net_arch": []},
    "learning_rate": lambda remaining: 0.1 * max(remaining, 0.02),
    "learning_starts": 200,
    "target_update_interval": 25,
    "exploration_initial_eps": 0.3,
    "exploration_final_eps": 0.3,
    "batch_size": 128,
}
CONTRACT: dict[str, Any] = {
    "learning_rate": lambda remaining: 0.05 * max(remaining, 0.02),
    "target_update_interval": 50,
    "exploration_initial_eps": 0.5,
    "exploration_final_eps": 0.5,
    "batch_size": 256,
}


def solve(horizon: int, algorithm: type[SoftDQN] = SoftDQN, regularization: float = 2.0) -> tuple[Any, Any]:
    """Q of a trained table, and Q*, in context 0 at discount 0.9. (Returns are random by about 3.)"""
    env = bandit(discount=0.9, horizon=horizon)
    env.set_leader(X)
    env.set_context(0)
    model = algorithm("MlpPolicy", env, regularization=regularization, gamma=0.9, seed=0, device="cpu", **TABLE).learn(3000)
    with torch.no_grad():
        q = model.q_net(torch.tensor([0, 1])).double()
    return q, env.model.solve(X, regularization).q[0]


@pytest.mark.parametrize("horizon", [10, 1])
def test_a_table_reaches_the_regularised_optimum(horizon: int) -> None:
    """With a horizon of 1 every episode that does not end by itself is cut, and still has its value to come."""
    q, exact = solve(horizon)
    torch.testing.assert_close(q, exact, atol=0.4, rtol=0.0)  # 3 standard errors: 3,000 steps tell how often an episode ends
    policy, optimum = (torch.softmax(values / 2.0, -1) for values in (q, exact))
    assert float((policy - optimum).abs().max()) < 0.04


@pytest.mark.parametrize("fault", ["hard maximum", "robust loss", "truncation ends", "no termination"])
def test_other_targets_and_losses_would_not(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "hard maximum":
        monkeypatch.setattr("torch.logsumexp", lambda q, dim, keepdim: q.max(dim=dim, keepdim=keepdim).values)
    elif fault == "robust loss":
        monkeypatch.setattr("followers.sb3.soft_dqn.mse_loss", torch.nn.functional.smooth_l1_loss)
    q, exact = solve(1 if fault == "truncation ends" else 10, FAULTY.get(fault, SoftDQN))
    assert float((q - exact).abs().max()) > 1.0


class _TruncationEnds(SoftDQN):
    def _setup_model(self) -> None:
        self.replay_buffer_kwargs = {"handle_timeout_termination": False}
        super()._setup_model()


class _NoTermination(SoftDQN):
    def train(self, *args: Any, **options: Any) -> None:
        self.replay_buffer.dones[:] = 0.0  # type: ignore[union-attr]
        super().train(*args, **options)


FAULTY = {"truncation ends": _TruncationEnds, "no termination": _NoTermination}


def test_it_behaves_as_softmax_of_q() -> None:
    model = SoftDQN("MlpPolicy", bandit(), regularization=0.05, device="cpu", seed=1)
    with torch.no_grad():
        expected = torch.softmax(model.q_net(torch.tensor([0])) / 0.05, 1)[0].numpy()
    n = 4000
    actions, _ = model.predict(np.zeros(n, dtype=int))
    assert abs((actions == 0).mean() - expected[0]) < 4 * np.sqrt(0.25 / n)
    greedy, _ = model.predict(np.zeros(3, dtype=int), deterministic=True)
    assert (greedy == expected.argmax()).all()


def test_it_is_an_sb3_algorithm(tmp_path: Path) -> None:
    model = SoftDQN("MlpPolicy", bandit(), regularization=0.3, device="cpu", seed=0, learning_starts=10).learn(50)
    assert isinstance(model, DQN)
    model.save(tmp_path / "model")
    again = SoftDQN.load(tmp_path / "model", device="cpu")
    assert again.regularization == 0.3
    states = torch.tensor([0, 1])
    torch.testing.assert_close(again.q_net(states), model.q_net(states))


def test_dictionaries_of_observations() -> None:
    class Named(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self, env: Any):
            super().__init__(env)
            self.observation_space = gym.spaces.Dict({"state": env.observation_space})

        def observation(self, observation: Any) -> Any:
            return {"state": observation}

    follower = SoftDQNFollower(0.1, 60, learning_starts=20)
    oracle = TrajectoryOracle(Named(bandit()), follower)
    generator = np.random.default_rng(0)
    policy = oracle.respond(X, 0, generator)
    assert policy.table is None  # type: ignore[attr-defined] - what this wrapper shows is not known
    assert policy.probabilities({"state": 0}).sum() == pytest.approx(1.0)  # type: ignore[attr-defined]
    assert oracle.sample(policy, 20, generator).observations[0].keys() == {"state"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regularization": 0.0}, errors.RegularizationError, "positive"),
        ({}, errors.RegularizationError, "None"),
        ({"regularization": 0.1, "n_steps": 3}, errors.OptionError, "n_steps is 3"),
        ({"regularization": 0.1, "optimize_memory_usage": True}, errors.OptionError, "time limit"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SoftDQN("MlpPolicy", bandit(), device="cpu", **options)


@pytest.mark.slow
def test_it_keeps_the_contract_of_followers() -> None:
    check_follower(SoftDQNFollower(0.2, 6000, warm_start=False, **{**TABLE, **CONTRACT}))


@pytest.mark.slow
def test_a_network_reaches_the_exact_policy_on_four_rooms() -> None:
    """Visitation-weighted total variation below 0.05; a uniform policy and an untrained network are far from it."""
    env = gym.make(
        "bocmdp/FourRooms-v0",
        slip_probability=0.1,
        discount=0.9,
        start=[4, 9],
        goals=[[1, 9], [4, 7]],
        observation="coordinates",
    )
    core, x, regularization = bocmdp_gym.configurable(env), np.zeros(105), 0.02
    follower = SoftDQNFollower(
        regularization,
        60_000,
        learning_rate=lambda remaining: 1e-3 * max(remaining, 0.02),
        learning_starts=1000,
        buffer_size=60_000,
        batch_size=128,
        target_update_interval=500,
        exploration_initial_eps=1.0,
        exploration_final_eps=0.1,
        exploration_fraction=0.5,
    )
    oracle = TrajectoryOracle(env, follower)
    untrained = SoftDQN("MlpPolicy", env, regularization=regularization, device="cpu", seed=0)
    with torch.no_grad():
        logits = untrained.policy.action_logits(torch.as_tensor(core.observe(np.arange(104))))  # type: ignore[operator]
    exact = core.model.solve(x, regularization).policy.numpy()
    for context in range(2):
        visits = leader_values(core.model.configure(x).arrays(context), exact[context]).visitation

        def distance(table: Any, context: int = context, visits: Any = visits) -> float:
            return float(visits @ abs(table - exact[context]).sum(-1) / 2 / visits.sum())

        assert distance(oracle.respond(x, context, np.random.default_rng(0)).table) < 0.05  # type: ignore[attr-defined]
        assert distance(np.full((104, 4), 0.25)) > 0.4
        assert distance(torch.softmax(logits.double(), -1).numpy()) > 0.4
