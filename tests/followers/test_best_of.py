from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import leaders
from bocmdp_gym import TabularVectorEnv, errors
from bocmdp_gym.wrappers import LeaderReward
from followers import BestOf, TrajectoryOracle, check_follower
from followers.checks import small_problems
from tests.followers.problems import X, bandit


def always(action: Any, observation: Any, rng: np.random.Generator) -> Any:
    return action


RULES = [partial(always, 0), partial(always, 1)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("context", [0, 1])
def test_takes_what_pays_at_this_x_in_this_context(context: int) -> None:
    for sign in (1.0, -1.0):
        policy = TrajectoryOracle(bandit(), BestOf(RULES)).respond(sign * X, context, rng())
        assert policy.act(0, rng()) == (0 if sign * X[context] > 0.0 else 1)


def test_all_play_the_same_episodes_and_the_first_of_equals_is_taken() -> None:
    class Named:
        def __init__(self, name: str):
            self.name, self.seen = name, []

        def predict(self, observation: Any, rng: np.random.Generator) -> int:
            self.seen.append((observation, rng.random()))
            return 0

    agents = [Named("one"), Named("other")]
    follower = BestOf(agents, episodes=20)
    oracle = TrajectoryOracle(bandit(), follower)
    policy = oracle.respond(X, 0, rng())
    assert agents[0].seen == agents[1].seen
    assert follower.training_steps == len(agents[0].seen) + len(agents[1].seen) == policy.metrics["follower_training_steps"]
    before = len(agents[1].seen)
    oracle.sample(policy, 10, rng())
    assert len(agents[1].seen) == before
    assert policy.metrics["agent_calls"] == len(agents[0].seen) - before


def test_returns_are_discounted_as_in_the_environment() -> None:
    """To be paid 1 at once is better than 1.5 a step later at a discount of 1/2, and worse without one."""

    class Wait(gym.Env[Any, Any]):
        observation_space = action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.age = 0
            return 0, {}

        def step(self, action: Any) -> Any:
            self.age += 1
            paid = {(1, 0): 1.0, (2, 1): 1.5}.get((self.age, int(action)), 0.0)
            return 0, paid, self.age == 2, False, {}

    for discount, chosen in ((0.5, 0), (1.0, 1)):
        env = LeaderReward(Wait(), lambda x, s, a, c: 0.0 * x[0] * a, 1, lambda x, s, a, c: 0.0 * a, discount)
        assert TrajectoryOracle(env, BestOf(RULES)).respond([0.0], 0, rng()).act(0, rng()) == chosen


def test_more_episodes_tell_agents_apart_that_differ_little() -> None:
    def mixed(observation: Any, rng: np.random.Generator) -> int:
        return int(rng.random() < 0.4)

    chosen = [
        TrajectoryOracle(bandit(), BestOf([RULES[1], mixed], episodes=episodes)).respond(X, 0, rng(seed)).act(0, rng(1))
        for episodes in (1, 30)
        for seed in range(20)
    ]
    assert chosen[20:].count(0) == 20


def test_is_a_follower_and_serves_a_leader_that_compares_returns() -> None:
    signs = small_problems()[0]
    check_follower(BestOf([lambda state, rng: int(state), lambda state, rng: 1 - int(state)], episodes=5), problems=[signs])
    leader = leaders.ZeroOrder(0.5, smoothing=0.5, decay=False, directions=2, env_steps=20)
    result = leaders.optimize(
        bandit(), leader, BestOf(RULES, 2), 20, x0=-0.2 * np.ones(2), seed=0, contexts="all", progress=False
    )
    assert (result.x > 0.0).all()  # the leader earns 1 in state 0, where action 0 leads


def test_exposes_probabilities_where_all_do() -> None:
    class Fair:
        def predict(self, observation: Any, rng: np.random.Generator) -> int:
            return int(rng.random() < 0.5)

        def probabilities(self, observation: Any) -> Any:
            return np.array([0.5, 0.5])

    assert BestOf([Fair(), Fair()]).exposes_probabilities
    assert not BestOf([Fair(), *RULES]).exposes_probabilities
    policy = TrajectoryOracle(bandit(), BestOf([Fair()])).respond(X, 0, rng())
    assert policy.probabilities(0) == pytest.approx([0.5, 0.5])


def test_what_cannot_be_tried_is_refused() -> None:
    for agents, named in (([], "no agents"), (3, "a list of agents"), ([1], "the agent is 1")):
        with pytest.raises(errors.OptionError, match=named):
            BestOf(agents)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="episodes"):
        BestOf(RULES, 0)
    with pytest.raises(errors.UnsupportedError, match="copies"):
        TrajectoryOracle(TabularVectorEnv(bandit(), 2), BestOf(RULES))
    with pytest.raises(errors.ActionError):
        TrajectoryOracle(bandit(), BestOf([partial(always, 7)])).respond(X, 0, rng())
