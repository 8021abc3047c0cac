from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import TabularBOCMDP, errors
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.wrappers import ContextWrapper, LeaderReward
from leaders.gradients.exact import exact_weights

F64 = torch.float64


def spot_bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    return x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2)) + 0.0 * actions


def spot_reward(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    return -((observations[:, 0] - 1.0) ** 2) - 0.1 * spot_bonus(x, observations, actions, context)


def cart_pole(**options: Any) -> LeaderReward:
    arguments: dict[str, Any] = {"bonus": spot_bonus, "leader_space": 2, "leader_reward": spot_reward, "discount": 0.99}
    return LeaderReward(gym.make("CartPole-v1"), **{**arguments, **options})


def test_rewards_are_the_environments_plus_the_bonus() -> None:
    env, plain = cart_pole(), gym.make("CartPole-v1")
    env.set_leader([0.5, 1.0])
    observation, info = env.reset(seed=3)
    seen, _ = plain.reset(seed=3)
    assert info["context"] == 0
    for action in (0, 1, 1, 0, 1):
        expected = 0.5 * np.exp(-((float(observation[0]) - 1.0) ** 2))
        observation, reward, *_, info = env.step(action)
        np.testing.assert_array_equal(observation, plain.step(action)[0])
        assert info["bonus"] == pytest.approx(expected)
        assert reward == pytest.approx(1.0 + expected)
        assert info["leader_reward"] == pytest.approx(-((float(seen[0]) - 1.0) ** 2) - 0.1 * expected)
        seen = observation


class Lake:
    """A bonus on FrozenLake's states, one number for each, and its arrays."""

    def __init__(self) -> None:
        self.plain = gym.make("FrozenLake-v1")

    @staticmethod
    def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return torch.sigmoid(x)[observations] * (1.0 + 0.5 * actions)

    @staticmethod
    def leader_reward(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return (observations == 9).to(F64) - 0.2 * torch.sigmoid(x)[observations]

    def wrapped(self) -> LeaderReward:
        return LeaderReward(self.plain, self.bonus, 16, self.leader_reward, 0.9)

    def model(self) -> TabularBOCMDP:
        base = bocmdp_gym.gymnasium_tables(self.plain).reward
        states, actions = np.divmod(np.arange(64), 4)
        points = torch.from_numpy(states), torch.from_numpy(actions), 0
        return TabularBOCMDP.from_gymnasium(
            self.plain,
            reward=lambda x: base + self.bonus(x, *points).reshape(1, 16, 4),
            leader_reward=lambda x: self.leader_reward(x, *points).reshape(1, 16, 4),
            leader_dim=16,
            discount=0.9,
        )


def test_gradients_through_the_wrapper_are_the_tabular_ones() -> None:
    """The exact weights of r and rbar, contracted with the wrapper's model, give the exact hypergradient."""
    lake = Lake()
    env, model = lake.wrapped(), lake.model()
    x = torch.linspace(-1.0, 1.0, 16, dtype=F64, requires_grad=True)
    model.leader_return(x, 0.1).backward()
    mdps = model.configure(x.detach().requires_grad_())
    weights, _ = exact_weights(mdps, 0, WarmSolver().solve(mdps, 0, 0.1), 0.1)
    states, actions = np.divmod(np.arange(64), 4)
    y = x.detach().clone().requires_grad_()
    total = torch.tensor(weights.reward).reshape(-1) @ env.model.rewards(y, states, actions, 0)
    total = total + torch.tensor(weights.leader_reward).reshape(-1) @ env.model.leader_rewards(y, states, actions, 0)
    total.backward()
    assert env.model.log_transitions(y, states, actions, states, 0) is None
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-8, atol=1e-12)


def test_sampled_returns_agree_with_the_tabular_model() -> None:
    """The oracle's plain path on the wrapped lake: mean leader return within 4 standard errors of the exact value."""
    lake = Lake()
    model, x, rng = lake.model(), np.linspace(-1.0, 1.0, 16), np.random.default_rng(0)
    policy = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.1)).respond(x, 0, rng)
    oracle = followers.TrajectoryOracle(lake.wrapped(), _Fixed(policy))
    batch = oracle.sample(oracle.respond(x, 0, rng), 6000, rng)
    returns = batch.discounted_returns(0.9, leader=True)
    error = returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - float(model.leader_return(x, 0.1))) < 4 * error
    follower = batch.discounted_returns(0.9)
    mdps = model.configure(x)
    value = float(mdps.follower_return(torch.tensor(policy.table)[None], 0.0))
    assert abs(follower.mean() - value) < 4 * follower.std() / np.sqrt(len(follower))


class _Fixed(followers.Follower):
    """Answers with a policy made elsewhere."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def respond(self, task: Any, rng: Any) -> Any:
        return self.policy


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4", "MountainCarContinuous-v0"])
def test_any_environment_passes_the_checkers(env_id: str) -> None:
    def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x.sum() * torch.tanh(observations.reshape(len(observations), -1).sum(-1))

    env = LeaderReward(gym.make(env_id), bonus, 3, bonus, 0.95)
    bocmdp_gym.check_configurable_env(env)
    bocmdp_gym.check_configurable_env(gym.wrappers.TimeLimit(env, 20))
    if env_id not in ("Pendulum-v1", "MountainCarContinuous-v0"):  # SB3 has advice about their own action spaces
        sb3_check_env(env, warn=True)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_gymnasium_checker_and_spec() -> None:
    check_env(Lake().wrapped(), skip_render_check=True)  # its pictures need pygame
    env = cart_pole()
    again = gym.make(env.spec)
    assert isinstance(again, LeaderReward)
    env.reset(seed=1)
    again.reset(seed=1)
    assert env.step(1)[1] == again.step(1)[1]


def test_contexts_come_from_inside() -> None:
    inner = ContextWrapper(gym.make("CartPole-v1"), [0.3, 0.9], names=["length"], probabilities=[0.25, 0.75])

    def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x[context].expand(len(actions))

    env = LeaderReward(inner, bonus, 2, bonus, 0.9)
    assert env.context_space == gym.spaces.Discrete(2)
    bocmdp_gym.check_configurable_env(env)
    env.set_leader([1.0, 2.0])
    drawn = []
    for seed in range(200):
        _, info = env.reset(seed=seed)
        assert inner.context == info["context"]
        assert env.unwrapped.length == (0.3, 0.9)[info["context"]]
        assert env.step(0)[1] == 1.0 + (1.0, 2.0)[info["context"]]
        drawn.append(info["context"])
    assert abs(np.mean(drawn) - 0.75) < 4 * np.sqrt(0.1875 / 200)
    env.set_context(1)
    for _ in range(3):
        assert env.reset()[1]["context"] == 1


def test_a_configurable_environment_inside_keeps_its_contexts_and_starts() -> None:
    def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x[0] * (observations == 17).to(F64)

    with pytest.warns(errors.FrozenLeaderWarning, match=r"FourRooms inside LeaderReward .* stays at \[0\. 0\. 0\. \.\.\. 0"):
        env = LeaderReward(gym.make("bocmdp/FourRooms-v0"), bonus, 1, bonus, 0.99)
    bocmdp_gym.check_configurable_env(env)
    assert bocmdp_gym.configurable(env) is env
    observation, _ = env.reset(options={"state": 17, "context": 1, "leader": [2.0]})
    assert observation == 17
    assert env.unwrapped.context == 1
    assert env.step(0)[4]["bonus"] == 2.0


def test_copies_are_configured_together() -> None:
    envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync", wrappers=[lambda env: cart_pole_around(env)])
    envs.call("set_leader", [0.3, 0.0])
    envs.reset(seed=0)
    for _ in range(60):
        *_, infos = envs.step(envs.action_space.sample())
    for held in envs.call("leader"):
        np.testing.assert_array_equal(held, [0.3, 0.0])
    assert (infos["bonus"] > 0).any()


def cart_pole_around(env: gym.Env[Any, Any]) -> LeaderReward:
    return LeaderReward(env, spot_bonus, 2, spot_reward, 0.99)


def test_dictionary_observations() -> None:
    class Pair(gym.ObservationWrapper[Any, Any, Any]):
        """Shows the cell in a dictionary."""

        observation_space = gym.spaces.Dict({"observation": gym.spaces.Discrete(16), "context": gym.spaces.Discrete(2)})

        def observation(self, observation: Any) -> Any:
            return {"observation": observation, "context": self.env.context}  # type: ignore[attr-defined]

    inner = Pair(ContextWrapper(gym.make("FrozenLake-v1"), ["thin", "thick"]))

    def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x[0] * (observations["observation"] + observations["context"])

    env = LeaderReward(inner, bonus, 1, bonus, 0.9)
    env.set_leader([1.0])
    env.reset(seed=0, options={"context": 1})
    assert env.step(0)[4]["bonus"] == 1.0
    rows = np.array([{"observation": 4, "context": 1}, {"observation": 2, "context": 0}])
    torch.testing.assert_close(
        env.model.rewards(torch.ones(1, dtype=F64), rows, np.zeros(2), 0), torch.tensor([5.0, 2.0]).double()
    )


# bad input: one clear named error each


class Purses(gym.Env[Any, Any]):
    """Rewards with two numbers."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **options: Any) -> Any:
        return 0, {}

    def step(self, action: Any) -> Any:
        return 0, np.zeros(2), False, False, {}


def test_environments_out_of_reach_are_refused() -> None:
    arguments = (spot_bonus, 2, spot_reward, 0.9)
    with pytest.raises(errors.UnsupportedError, match="rewards it cannot reach"):
        LeaderReward(gym.make_vec("CartPole-v1", 2), *arguments)  # type: ignore[arg-type]
    with pytest.raises(errors.UnsupportedError, match=r"expected a gymnasium\.Env"):
        LeaderReward("CartPole-v1", *arguments)  # type: ignore[arg-type]
    env = LeaderReward(Purses(), lambda x, o, a, c: x[0] * a, 1, lambda x, o, a, c: x[0] * a, 0.9)
    env.reset()
    with pytest.raises(errors.UnsupportedError, match="reward is one number"):
        env.step(0)
    with pytest.raises(errors.UnsupportedError, match="cannot be put into a state"):
        cart_pole().reset(options={"state": 3})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bonus": lambda x, o, a, c: x[0]}, errors.ModelError, r"bonus.* returned shape \(\) for 3 points; expected \(3,\)"),
        ({"bonus": lambda x, o, a, c: x[0] * o}, errors.ModelError, r"returned shape \(3, 4\)"),
        ({"bonus": lambda x, o, a, c: 1.0}, errors.ModelError, "returned float; expected a torch tensor"),
        ({"bonus": lambda x, o, a, c: torch.zeros(len(a))}, errors.ModelError, "does not depend on x"),
        ({"leader_reward": lambda x, o, a, c: o}, errors.ModelError, r"leader_reward.* returned shape \(3, 4\)"),
        ({"leader_space": 0}, errors.OptionError, "leader_space is 0"),
        ({"leader_space": gym.spaces.Box(0, 1, (2,))}, errors.OptionError, r"dtype=np\.float64"),
        ({"leader_space": gym.spaces.Box(0, 1, (2, 1), np.float64)}, errors.OptionError, r"shape \(d,\)"),
        ({"discount": 1.5}, errors.DiscountError, "1.5"),
        ({"initial_leader": [1.0]}, errors.LeaderParameterError, r"expected \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cart_pole(**options)


def test_nan_is_named_where_it_appears() -> None:
    env = cart_pole(bonus=lambda x, o, a, c: torch.sqrt(x[0]).expand(len(a)))
    env.set_leader([-1.0, 0.0])
    env.reset(seed=0)
    with pytest.raises(errors.ModelError, match=r"bonus is nan at observation \[.*action 1, context 0, x = \[-1\.0, 0\.0\]"):
        env.step(1)
    with pytest.raises(errors.ModelError, match="bonus is nan"):
        env.model.rewards(torch.tensor([-1.0, 0.0]), np.zeros((2, 4)), np.zeros(2), 0)


def test_leaders_that_need_a_tabular_model_say_so() -> None:
    with pytest.raises(errors.UnsupportedError, match="tabular model"):
        leaders.optimize(cart_pole(), leaders.ExactGradient(regularization=0.1), _Fixed(None), 5)


@pytest.mark.parametrize("taking", [False, True])
def test_trajectories_are_paid_at_once_what_steps_would_have_paid(taking: bool) -> None:
    """By an oracle, for all steps together; a layer that may look at rewards, a twin or a step of one's own is paid at each."""

    def bonus(
        x: Any, observations: Any, actions: Any, context: Any, *, next_observations: Any = None, rewards: Any = None
    ) -> Any:
        led_to = next_observations[:, 1] * rewards if taking else 0.0
        return x[0] * torch.sin(observations[:, 2]) * (actions == 1) + x[1] * led_to

    def plain(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return bonus(x, observations, actions, context)

    def make(cls: type[LeaderReward] = LeaderReward) -> LeaderReward:
        return cls(
            gym.make("CartPole-v1"),
            bonus=bonus if taking else plain,
            leader_space=2,
            leader_reward=lambda x, observations, actions, context: x[1] * observations[:, 0] ** 2 + 1.0,
            discount=0.9,
        )

    class AtOnce(LeaderReward):
        def step(self, action: Any) -> Any:
            return super().step(action)

    batches = []
    for env in (make(), gym.wrappers.RecordEpisodeStatistics(make()), make(AtOnce)):
        core: Any = bocmdp_gym.configurable(env)
        oracle = followers.TrajectoryOracle(env, followers.CallableFollower(lambda o, rng: int(rng.integers(2))))
        policy = oracle.respond([0.3, -0.2], 0, np.random.default_rng(0))
        batches.append(oracle.sample(policy, 200, np.random.default_rng(1)))
        assert not core.is_deferred
        env.reset(seed=0)
        assert env.step(1)[4]["leader_reward"] != 0.0
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.observations, batches[0].observations)
        np.testing.assert_allclose(batch.rewards, batches[0].rewards, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(batch.leader_rewards, batches[0].leader_rewards, rtol=1e-12, atol=1e-12)
    assert make().pays_later
    assert not make(AtOnce).pays_later
