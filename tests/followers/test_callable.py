from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import leaders
from bocmdp_gym import TabularVectorEnv, errors
from bocmdp_gym.errors import CheckError
from bocmdp_gym.wrappers import ObserveContext
from followers import CallableFollower, SoftPolicyIteration, TrajectoryOracle, check_follower, empirical_policy
from tests.followers.problems import CountSteps, Point, X, bandit

P = np.array([[0.8, 0.2], [0.3, 0.7]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(observation: Any, rng: np.random.Generator) -> int:
    return int(rng.random() > P[int(observation), 0])


class Exposed:
    """An agent that exposes its probabilities."""

    def predict(self, observation: Any, rng: np.random.Generator) -> tuple[int, None]:
        return draw(observation, rng), None

    def probabilities(self, observation: Any) -> Any:
        return P[int(observation)]


def respond(follower: CallableFollower, env: Any = None, x: Any = X) -> tuple[TrajectoryOracle, Any]:
    oracle = TrajectoryOracle(bandit() if env is None else env, follower)
    return oracle, oracle.respond(x, 0, rng(0))


@pytest.mark.parametrize(
    "agent",
    [
        lambda observation: 1,
        lambda observation: np.array([1]),
        lambda observation: (np.int64(1), None),
        lambda observation, rng: 1,
    ],
)
def test_any_function_acts(agent: Any) -> None:
    oracle, policy = respond(CallableFollower(agent))
    batch = oracle.sample(policy, 20, rng(0))
    assert (batch.actions == 1).all()
    assert batch.states is not None
    assert not policy.exposes_probabilities
    assert policy.table is None


def test_a_trained_sb3_model_is_an_agent() -> None:
    env = bandit()
    env.set_leader(X)
    env.set_context(0)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", seed=0)
    oracle, policy = respond(CallableFollower(model, estimate_steps=50))
    first, second = (oracle.sample(policy, 100, rng(1)).actions for _ in range(2))
    np.testing.assert_array_equal(first, second)  # though it draws from torch's global generator
    assert 0 < first.mean() < 1
    torch.manual_seed(3)
    state = torch.get_rng_state()
    oracle.sample(policy, 10, rng(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_agents_that_draw_from_global_generators_are_reproducible() -> None:
    oracle, policy = respond(CallableFollower(lambda observation: np.random.randint(2)))  # noqa: NPY002 - an agent might
    first, second, other = (oracle.sample(policy, 200, rng(seed)).actions for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[:100], other[:100])


def test_exposed_probabilities_make_a_table() -> None:
    for follower in (CallableFollower(Exposed()), CallableFollower(draw, probabilities=lambda observation: P[int(observation)])):
        oracle, policy = respond(follower)
        np.testing.assert_allclose(policy.table, P)
        np.testing.assert_allclose(policy.probabilities(1), P[1])
        batch = oracle.sample(policy, 20_000, rng(0))  # compiled
        played = TrajectoryOracle(bandit(), follower, compiled=False).sample(policy, 4000, rng(0))
        for b, n in ((batch, 20_000), (played, 4000)):
            shares = empirical_policy(b, 2, 2).table
            assert abs(shares - P).max() < 4 * np.sqrt(0.25 / (n / 4))


def test_probabilities_are_estimated_with_the_counts_behind_them() -> None:
    follower = CallableFollower(draw, estimate_steps=4000)
    env = CountSteps(bandit())
    oracle, policy = respond(follower, env)
    counts = policy.estimate.counts
    assert counts.sum() == oracle.training_steps == env.steps >= 4000
    assert oracle.env_steps == 0
    for state in range(2):
        error = np.sqrt(P[state, 0] * P[state, 1] / counts[state].sum())
        assert abs(policy.probabilities(state) - P[state]).max() < 4 * error
        np.testing.assert_array_equal(policy.counts(state), counts[state])
    assert policy.table is None  # the agent acts, not the estimate
    batch = oracle.sample(policy, 100, rng(3))
    assert oracle.env_steps == batch.n_steps
    assert policy.metrics["follower_training_steps"] == follower.training_steps


def test_a_state_never_visited_has_no_estimate() -> None:
    _, policy = respond(CallableFollower(lambda observation: 1, estimate_steps=1), bandit(horizon=1))
    seen = int(policy.estimate.counts.sum(1).argmax())
    np.testing.assert_array_equal(policy.probabilities(seen), [0.0, 1.0])
    assert np.isnan(policy.estimate.table[1 - seen]).all()
    with pytest.raises(errors.UnsupportedError, match="never visited"):
        policy.probabilities(1 - seen)


def test_estimates_read_states_through_wrappers() -> None:
    follower = CallableFollower(lambda observation, rng: draw(observation[:2].argmax(), rng), estimate_steps=500)
    env = ObserveContext(bandit())
    _, policy = respond(follower, env)
    for state in range(2):
        np.testing.assert_array_equal(policy.counts(env.combine(state, 0)), policy.estimate.counts[state])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_copies_estimate_and_train_too(mode: str) -> None:
    def train(envs: Any, context: int, rng: np.random.Generator) -> Any:
        envs.reset(seed=int(rng.integers(2**31)))
        for _ in range(100):
            *_, terminations, truncations, _ = envs.step(np.ones(3, dtype=int))
            if mode == "Disabled" and (ended := terminations | truncations).any():
                envs.reset(options={"reset_mask": ended})
        return draw

    follower = CallableFollower(train=train, estimate_steps=2000)
    envs = gym.vector.SyncVectorEnv([lambda: CountSteps(bandit(horizon=5))] * 3, autoreset_mode=mode)
    _, policy = respond(follower, envs)
    assert sum(env.steps for env in envs.envs) == follower.training_steps  # type: ignore[attr-defined]
    assert policy.estimate.counts.sum() >= 2000
    assert abs(policy.estimate.table - P).max() < 0.1


def test_train_makes_the_agent() -> None:
    calls = []

    def train(env: Any, context: int, rng: np.random.Generator) -> Any:
        calls.append((env.unwrapped.leader.tolist(), context))
        env.reset(seed=0)
        rewards = [env.step(action)[1] for action in (0, 1)]
        best = int(np.argmax(rewards))
        return lambda observation: best

    env = CountSteps(bandit(horizon=None))
    oracle = TrajectoryOracle(env, CallableFollower(train=train))
    generator = rng(0)
    policies = [oracle.respond(x, context, generator) for x, context in ((X, 0), (X, 1), (-X, 0))]
    assert [policy.act(0, generator) for policy in policies] == [0, 1, 1]
    assert calls == [([1.0, -1.0], 0), ([1.0, -1.0], 1), ([-1.0, 1.0], 0)]
    assert oracle.training_steps == env.steps == 6
    oracle.follower.reset()
    assert oracle.training_steps == 0


def test_a_policy_of_an_agent_trained_in_place_since_is_refused() -> None:
    class Agent:
        action = 0

        def predict(self, observation: Any) -> int:
            return self.action

    agent, learnt = Agent(), {}

    def in_place(env: Any, context: int, rng: np.random.Generator) -> None:
        agent.action = 1 - agent.action

    def kept(env: Any, context: int, rng: np.random.Generator) -> Agent:
        learnt.setdefault(context, Agent()).action += 0
        return learnt[context]

    for follower in (CallableFollower(agent, train=in_place), CallableFollower(train=kept)):
        oracle = TrajectoryOracle(bandit(), follower)
        first = oracle.respond(X, 0, rng(0))
        first.act(0, rng(0))
        second = oracle.respond(-X, 0, rng(0))
        second.act(0, rng(0))
        with pytest.raises(errors.UnsupportedError, match="trained in place"):
            first.act(0, rng(0))


def test_a_new_run_can_forget() -> None:
    forgotten = []
    follower = CallableFollower(draw, reset=lambda: forgotten.append(1))
    TrajectoryOracle(bandit(), follower)
    TrajectoryOracle(bandit(), follower)
    assert len(forgotten) == 2


def test_hpgd_runs_with_an_agent() -> None:
    """An agent that is in truth the exact follower leads HPGD to the same x, up to sampling noise."""
    exact = SoftPolicyIteration(0.5)

    def train(env: Any, context: int, rng: np.random.Generator) -> Any:
        table = TrajectoryOracle(bandit(), exact).respond(env.unwrapped.leader, context, rng).table  # type: ignore[attr-defined]
        return lambda observation, rng: int(rng.random() > table[int(observation), 0])

    leader = leaders.HPGD(env_steps=2000, regularization=0.5, learning_rate=0.2)
    result = leaders.optimize(bandit(), leader, CallableFollower(train=train), 12, x0=np.zeros(2))
    reference = leaders.optimize(bandit(), leaders.HPGD(env_steps=2000, learning_rate=0.2), exact, 12, x0=np.zeros(2))
    assert result.leader_return is not None
    assert reference.leader_return is not None
    start = float(result.history["leader_return"][0])
    assert result.leader_return > start + 0.7 * (reference.leader_return - start)
    with pytest.raises(errors.RegularizationError, match="HPGD"):
        leaders.optimize(bandit(), leaders.HPGD(), CallableFollower(draw), 2)


def test_estimates_are_measured_where_they_cover_all_states() -> None:
    """What the loop logs of a follower: nothing of one whose estimate has gaps."""
    for estimate_steps, known in ((1000, True), (1, False)):
        oracle, policy = respond(CallableFollower(draw, estimate_steps=estimate_steps), bandit(horizon=1))
        table = oracle.tabulate(policy)
        assert (table is not None) == known
        if table is not None:
            assert abs(table.table - P).max() < 0.1
    oracle, policy = respond(CallableFollower(draw))
    assert oracle.tabulate(policy) is None
    oracle, policy = respond(
        CallableFollower(lambda o, rng: 0, probabilities=lambda o: P[o[:2].argmax()]), ObserveContext(bandit())
    )
    np.testing.assert_allclose(oracle.tabulate(policy).table, P)  # type: ignore[union-attr]


def test_an_agent_keeps_the_contract_of_followers() -> None:
    """An agent that learns the model's own optimum: by its actions alone, and exposing its probabilities."""

    class Optimal:
        def __init__(self, table: Any):
            self.table = table

        def predict(self, observation: int, rng: np.random.Generator) -> int:
            return int(rng.choice(self.table.shape[1], p=self.table[observation]))

    class Exposing(Optimal):
        def probabilities(self, observation: int) -> Any:
            return self.table[observation]

    def train(env: Any, context: int, kind: type[Optimal]) -> Optimal:
        core = env.unwrapped
        return kind(core.model.solve(core.leader, 0.01).policy[context].numpy())

    for kind, regularization in ((Exposing, 0.01), (Optimal, None)):
        check_follower(
            CallableFollower(
                train=lambda env, context, rng, kind=kind: train(env, context, kind),
                regularization=regularization,
            )
        )
    with pytest.raises(CheckError, match="off by"):
        check_follower(CallableFollower(train=lambda env, context, rng: train(env, 0, Exposing), regularization=0.01))


@pytest.mark.parametrize("action", [2, -1, 0.5, None, "left", np.array([0, 1]), np.nan])
def test_an_illegal_action_is_refused_at_once(action: Any) -> None:
    env = CountSteps(bandit())
    oracle, policy = respond(CallableFollower(lambda observation: action), env)
    with pytest.raises(errors.ActionError, match="is illegal"):
        oracle.sample(policy, 10, rng(0))
    assert env.steps == 0


@pytest.mark.parametrize("action", [3.0, np.array([np.nan]), np.zeros(2), "left"])
def test_an_illegal_continuous_action_is_refused_at_once(action: Any) -> None:
    env = Point()
    oracle, policy = respond(CallableFollower(lambda observation: action), env, [0.5])
    with pytest.raises(errors.ActionError, match="is illegal"):
        oracle.sample(policy, 10, rng(0))
    assert env.steps == 0


def test_an_illegal_joint_action_is_refused_at_once() -> None:
    env = Point(discrete=True)
    for action in ([0.5, 1], [3, 0], [0], "left"):
        oracle, policy = respond(CallableFollower(lambda observation, action=action: action), env, [0.5])
        with pytest.raises(errors.ActionError, match="is illegal"):
            oracle.sample(policy, 10, rng(0))
    oracle, policy = respond(CallableFollower(lambda observation: [2, 1]), env, [0.5])
    assert (oracle.sample(policy, 10, rng(0)).actions == [2, 1]).all()


def test_probabilities_that_are_none_are_refused() -> None:
    for row in ([0.5, 0.6], [1.0], [-0.1, 1.1], [np.nan, 1.0]):
        with pytest.raises(errors.ActionError, match="sum to 1"):
            respond(CallableFollower(draw, probabilities=lambda observation, row=row: row))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="neither agent nor train"):
        CallableFollower()
    with pytest.raises(errors.OptionError, match="expected observation -> action"):
        CallableFollower(7)
    with pytest.raises(errors.OptionError, match="estimate_steps is 0"):
        CallableFollower(draw, estimate_steps=0)
    with pytest.raises(errors.RegularizationError):
        CallableFollower(draw, regularization=-1.0)
    with pytest.raises(errors.UnsupportedError, match="is not tabular"):
        TrajectoryOracle(Point(), CallableFollower(draw, estimate_steps=10))
    with pytest.raises(errors.OptionError, match="returned None"):
        respond(CallableFollower(train=lambda env, context, rng: None))
    oracle, policy = respond(CallableFollower(lambda observation: np.zeros(1, np.float32)), Point(), [0.5])
    batch = oracle.sample(policy, 5, rng(0))
    with pytest.raises(errors.UnsupportedError, match="no state indices"):
        empirical_policy(batch, 2, 2)


def test_counts_of_the_native_copies_are_exact() -> None:
    oracle, policy = respond(CallableFollower(draw, estimate_steps=500), TabularVectorEnv(bandit(), 4))
    assert policy.estimate.counts.sum() <= oracle.training_steps <= policy.estimate.counts.sum() + 4 * 40


# ------------------------------------------------------------------------------------------------- many observations at once


class Many:
    """Takes batches, and notes how many observations each call had."""

    batched = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, observations: Any, rng: np.random.Generator) -> tuple[Any, None]:
        self.asked.append(len(observations))
        return (rng.random(len(observations)) > P[np.asarray(observations), 0]).astype(int), None


class ManyExposed(Many):
    def probabilities(self, observations: Any) -> Any:
        self.asked.append(len(observations))
        return P[np.asarray(observations)]


def test_a_batched_agent_is_called_once_for_many_observations() -> None:
    agent = Many()
    oracle, policy = respond(CallableFollower(agent))
    assert policy.batched
    actions = policy.act_batch(np.array([0, 1, 0]), rng(0))
    assert len(actions) == agent.asked[0] == 3
    assert policy.act(1, rng(0)) in (0, 1)
    assert agent.asked == [3, 1]
    batch = oracle.sample(policy, 4000, rng(0))
    assert len(agent.asked) < batch.n_steps / 10
    assert policy.metrics["agent_calls"] == len(agent.asked)
    shares = empirical_policy(batch, 2, 2).table
    assert abs(shares - P).max() < 4 * np.sqrt(0.25 / 1000)


def test_batched_probabilities_are_asked_for_once() -> None:
    agent = ManyExposed()
    _, policy = respond(CallableFollower(agent))
    np.testing.assert_allclose(policy.table, P)
    assert agent.asked == [2]
    np.testing.assert_allclose(policy.probabilities_batch(np.array([1, 1, 0])), P[[1, 1, 0]])
    np.testing.assert_allclose(policy.probabilities(1), P[1])
    assert agent.asked == [2, 3, 1]
    assert policy.metrics["agent_calls"] == 3
    estimating = Many()
    _, policy = respond(CallableFollower(estimating, estimate_steps=2000))
    assert policy.estimate.counts.sum() >= 2000
    assert policy.metrics["agent_calls"] == len(estimating.asked) < 200


def test_a_model_of_sb3_takes_batches() -> None:
    env = bandit()
    env.set_leader(X)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", seed=0)
    oracle, policy = respond(CallableFollower(model, batched=True))
    first, second = (oracle.sample(policy, 300, rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first.actions, second.actions)
    assert policy.metrics["agent_calls"] < first.n_steps / 4


@pytest.mark.parametrize("answer", [1, [1], np.ones((2, 3), int), [0, 1, 7], [0, 1, "left"]])
def test_an_agent_that_is_not_batched_is_found_out(answer: Any) -> None:
    _, policy = respond(CallableFollower(lambda observations: answer, batched=True))
    with pytest.raises(errors.ActionError, match=r"one row for each observation|is illegal"):
        policy.act_batch(np.array([0, 1, 0]), rng(0))
    with pytest.raises(errors.ActionError, match="one row for each observation"):
        respond(CallableFollower(draw, probabilities=lambda observations: P[[0]], batched=True))
    with pytest.raises(errors.OptionError, match="batched is"):
        CallableFollower(draw, batched=1)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- agents that are called, and rules


def test_calls_are_counted_in_the_history() -> None:
    calls = []

    def agent(observation: Any, rng: np.random.Generator) -> int:
        calls.append(1)
        return draw(observation, rng)

    leader = leaders.HPGD(env_steps=100, regularization=0.5, learning_rate=1e-6)
    result = leaders.optimize(bandit(), leader, CallableFollower(agent), 3, seed=0)
    assert result.history["agent_calls"].sum() == len(calls) == result.env_steps


@pytest.mark.parametrize("exposes", [True, False])
def test_a_rule_is_found_out_where_its_probabilities_are_known(exposes: bool) -> None:
    rule = np.eye(2)
    options: Any = {"probabilities": lambda o: rule[int(o)]} if exposes else {"estimate_steps": 200}
    follower = CallableFollower(lambda observation: int(observation), **options)
    with pytest.warns(UserWarning, match=r"one action alone in every state.*FirstOrder or ZeroOrder"):
        leaders.optimize(bandit(), leaders.HPGD(env_steps=100, regularization=0.5), follower, 1, seed=0)
    leaders.optimize(bandit(), leaders.ZeroOrder(env_steps=100), follower, 1, seed=0)  # weighs no reactions: no warning
    _, policy = respond(CallableFollower(draw, estimate_steps=200))
    assert not policy.greedy


@pytest.mark.parametrize("estimator", ["critic", "monte_carlo"])
def test_a_rule_is_found_out_by_what_it_does_again(estimator: str) -> None:
    leader = leaders.HPGD(estimator=estimator, env_steps=100, regularization=0.5)
    with pytest.warns(UserWarning, match=r"one action alone in every state.*FirstOrder or ZeroOrder"):
        leaders.optimize(bandit(), leader, CallableFollower(lambda observation: int(observation)), 2, seed=0)
    leaders.optimize(bandit(), leader, CallableFollower(draw), 2, seed=0)


def test_a_rule_that_says_so_is_refused() -> None:
    follower = CallableFollower(lambda observation: int(observation), greedy=True)
    with pytest.raises(errors.UnsupportedError, match="best action alone"):
        leaders.optimize(bandit(), leaders.HPGD(env_steps=100, regularization=0.5), follower, 1)
