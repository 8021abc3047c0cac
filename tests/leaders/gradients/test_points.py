"""Estimators on wrapped environments whose rewards and ends depend on where a step leads, against their exact tables."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import followers
import leaders
from bocmdp_gym import TabularBOCMDP, errors
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.wrappers import LeaderParameters, LeaderReward
from leaders.gradients import CriticEstimator, Estimate
from leaders.gradients.first_order import FirstOrderEstimator
from tests.problems import relative_error

F64 = torch.float64
STATES, ACTIONS = 4, 2
_RNG = np.random.default_rng(3)
BASE, SLOPE = _RNG.standard_normal((2, STATES, ACTIONS, STATES + 1))
OWN, HEAT = _RNG.uniform(-0.5, 1.5, (STATES, ACTIONS, STATES + 1)), np.linspace(0.0, 1.0, STATES + 1)
CODES = np.eye(STATES + 1)


def probabilities(drift: Tensor) -> Tensor:
    """P(s'|s, a) ``(S, A, S + 1)``; the last state ends the episode."""
    return torch.softmax(torch.from_numpy(BASE) + drift * torch.from_numpy(SLOPE), -1)


class Walk(gym.Env[Any, Any]):
    """Pays for, and ends by, the state it arrives in."""

    observation_space = gym.spaces.Box(0.0, 1.0, (STATES + 1,), np.float64)
    action_space = gym.spaces.Discrete(ACTIONS)

    def __init__(self) -> None:
        self.drift, self._state = 0.3, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._cumulative = probabilities(torch.tensor(self.drift, dtype=F64)).cumsum(-1).numpy()
        self._state = int(self.np_random.integers(STATES))
        return CODES[self._state], {}

    def step(self, action: Any) -> Any:
        before, row = self._state, self._cumulative[self._state, action]
        self._state = int(min(row.searchsorted(self.np_random.random()), STATES))
        ended = self._state == STATES
        return CODES[self._state], OWN[before, action, self._state], ended, False, {"heat": HEAT[self._state], "name": "walk"}


def paid(x: Tensor, a: Any, heat: Any, own: Any, following: Any) -> Tensor:
    """The bonus, from numbers that broadcast."""
    return x[0] * a * heat + x[1] * own + torch.sin(x[0] * x[1]) * following


def bonus(x: Tensor, observations: Any, actions: Any, context: Any, next_observations: Any, rewards: Any, infos: Any) -> Tensor:
    return paid(x, actions, infos["heat"], rewards, next_observations[:, 2])


def earned(
    x: Tensor, observations: Any, actions: Any, context: Any, *, next_observations: Any, rewards: Any, infos: Any
) -> Tensor:
    return next_observations[:, 3] - 0.5 * paid(x, actions, infos["heat"], rewards, next_observations[:, 2])


def one_step(x: Any, observation: Any, action: Any, context: Any, next_observations: Any, rewards: Any, infos: Any) -> Any:
    value = x[0] * action * infos["heat"] + x[1] * rewards + np.sin(x[0] * x[1]) * next_observations[2]
    return value, next_observations[3] - 0.5 * value


def log_transitions(x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor:
    states, following = observations.argmax(-1), next_observations.argmax(-1)
    return probabilities(x[2])[states, actions, following].log()


def walk(**options: Any) -> LeaderReward:
    """x = (two numbers of the bonus, the drift)."""
    arguments: dict[str, Any] = {"info_keys": ["heat"], "parameters": ["drift"], "log_transitions": log_transitions}
    return LeaderReward(Walk(), bonus, 3, earned, 0.8, **{**arguments, "step_rewards": one_step, **options})


def exact_model() -> TabularBOCMDP:
    """The same problem as tables: rewards in expectation over s', and ends with the probability of the last state."""
    actions = torch.arange(ACTIONS, dtype=F64).reshape(1, ACTIONS, 1)
    codes = torch.from_numpy(CODES)
    given = actions, torch.from_numpy(HEAT), torch.from_numpy(OWN), codes[2]

    def mean(x: Tensor, values: Tensor) -> Tensor:
        return (probabilities(x[2]) * values).sum(-1).unsqueeze(0)

    return TabularBOCMDP(
        reward=lambda x: mean(x, torch.from_numpy(OWN) + paid(x, *given)),
        leader_reward=lambda x: mean(x, codes[3] - 0.5 * paid(x, *given)),
        transition=lambda x: (probabilities(x[2])[..., :STATES] / (1.0 - probabilities(x[2])[..., STATES:])).unsqueeze(0),
        termination=lambda x: probabilities(x[2])[..., STATES].unsqueeze(0),
        initial=torch.full((1, STATES), 1.0 / STATES, dtype=F64),
        context_probabilities=[1.0],
        discount=0.8,
        leader_dim=3,
    )


class Planner(followers.Follower):
    """Plans on the tables, and answers from what it sees."""

    regularization = 0.5

    def __init__(self) -> None:
        self._model = exact_model()

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        mdps = self._model.configure(task.leader)
        if task.leader_share:
            mdps = mdps.with_leader_share(task.leader_share)
        table = WarmSolver().solve(mdps, 0, self.regularization).policy
        table = np.concatenate([table, table[:1]])  # copies that wait for their reset are shown the end

        class Telling:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return int(rng.random() > table[observation.argmax(), 0])

            def probabilities(self, observation: Any) -> Any:
                return table[observation.argmax()]

            def probabilities_batch(self, observations: Any) -> Any:
                return table[observations.argmax(-1)]

        return Telling()


X = torch.tensor([0.8, 0.6, 0.5], dtype=F64)


def exact_gradient() -> tuple[Tensor, float]:
    x = X.clone().requires_grad_()
    value = exact_model().leader_return(x, Planner.regularization)
    value.backward()
    assert x.grad is not None
    return x.grad, float(value.detach())


def estimated(env: Any, estimator: Any) -> Estimate:
    oracle = followers.TrajectoryOracle(env, Planner())
    estimator.bind(oracle)
    found: Estimate = estimator.estimate(oracle, X, 0, np.random.default_rng(0))
    return found


def deviation(estimate: Estimate, exact: Tensor) -> float:
    assert estimate.standard_error is not None
    return float(((estimate.gradient - exact).abs() / estimate.standard_error.clamp(min=1e-6)).max())


@pytest.mark.parametrize("estimator", ["critic", "first order"])
def test_gradients_of_rewards_and_dynamics_are_the_exact_ones(estimator: str) -> None:
    exact, value = exact_gradient()
    made = {
        "critic": lambda: CriticEstimator(20_000, hidden=(), error_groups=20),
        "first order": lambda: FirstOrderEstimator(0.3, env_steps=30_000, error_groups=20),
    }
    estimate = estimated(walk(), made[estimator]())
    assert deviation(estimate, exact) < 4
    assert relative_error(estimate.gradient, exact) < 0.15
    assert estimate.leader_return == pytest.approx(value, abs=0.05)


@pytest.mark.parametrize("estimator", ["critic", "first order"])
def test_entries_without_derivatives_are_named_and_held(estimator: str) -> None:
    """Without log P the drift stays where it is, and the other two have the gradient at that drift."""
    made = (
        CriticEstimator(5000, hidden=(), error_groups=10) if estimator == "critic" else FirstOrderEstimator(0.3, env_steps=9000)
    )
    with pytest.warns(errors.FrozenLeaderWarning, match=r"leaves this entry of x where the run starts. x\[2\] \(drift\)"):
        estimate = estimated(walk(log_transitions=None), made)
    exact, _ = exact_gradient()
    assert estimate.gradient[2] == 0.0
    assert relative_error(estimate.gradient[:2], exact[:2]) < 0.15


def test_leaders_that_compare_returns_move_everything() -> None:
    env = walk(log_transitions=None)
    leader = leaders.ZeroOrder(0.1, smoothing=0.1, decay=False, env_steps=50)
    result = leaders.optimize(env, leader, Planner(), 1, x0=X, seed=0)  # a warning would fail here
    assert (result.x != X).all()


def test_a_gradient_of_nothing_is_refused() -> None:
    def pushed(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x[0] * actions

    env = LeaderReward(Walk(), pushed, 1, pushed, 0.8, parameters=["drift"])
    with pytest.raises(errors.UnsupportedError, match=r"no derivative to follow. x\[0\] \(drift\) also moves the dynamics"):
        estimated(env, CriticEstimator(100))


@pytest.mark.parametrize("mode", [None, *gym.vector.AutoresetMode])
def test_trajectories_carry_what_rewards_take(mode: Any) -> None:
    """The model's rewards at the steps of one environment, or of copies in any autoreset mode, are those that were paid."""
    env: Any = walk() if mode is None else gym.vector.SyncVectorEnv([walk] * 3, autoreset_mode=mode)
    oracle = followers.TrajectoryOracle(env, Planner())
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond(X, 0, rng), 300, rng)
    model = oracle.model
    assert model is not None
    assert model.outcomes == ("infos", "next_observations", "rewards")
    outcomes = batch.outcomes_of(model.outcomes)
    points = batch.observations, batch.actions, 0
    np.testing.assert_allclose(model.leader_rewards(X, *points, **outcomes), batch.leader_rewards, rtol=1e-12)
    np.testing.assert_allclose(model.rewards(X, *points, **outcomes), batch.rewards - outcomes["rewards"], rtol=1e-9)
    some = batch.episodes(np.array([4, 1]))
    paid_there = model.leader_rewards(X, some.observations, some.actions, 0, **some.outcomes_of(model.outcomes))
    np.testing.assert_allclose(paid_there, some.leader_rewards, rtol=1e-12)


def test_rewards_of_outcomes_are_refused_without_them() -> None:
    model = walk().model
    with pytest.raises(errors.ModelError, match="takes next_observations, which only a step that was taken has"):
        model.rewards(X, CODES[:2], np.zeros(2), 0)
    env = LeaderReward(Walk(), lambda x, o, a, c: x[0] * a, 1, lambda x, o, a, c: x[0] * a, 0.8)
    oracle = followers.TrajectoryOracle(env, followers.CallableFollower(lambda observation: 0))
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond([0.0], 0, rng), 10, rng)
    assert batch.outcomes is None
    with pytest.raises(errors.OptionError, match=r"take rewards of each step, and these trajectories carry \[\]"):
        batch.outcomes_of(["rewards"])


class Throw(gym.Env[Any, Any]):
    """One step: the action, plus noise, is where it lands; throwing far costs effort."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = gym.spaces.Box(-4.0, 4.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        landed = float(action[0] + 0.3 * self.np_random.standard_normal())
        return np.zeros(1), -0.5 * float(action[0]) ** 2, True, False, {"landed": landed}


class Thrower(followers.Follower):
    """Its best answer to -a^2 / 2 + x a with entropy: N(x, lambda)."""

    regularization = 0.5

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        class Gaussian:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return task.leader + 0.5**0.5 * rng.standard_normal(1)

        return Gaussian()


def test_continuous_actions_take_rewards_at_steps_alone() -> None:
    """A bonus on where it lands: F = 2 x, and linear features of the action know it."""

    def landing(x: Tensor, observations: Any, actions: Any, context: Any, infos: Any) -> Tensor:
        return x[0] * infos["landed"]

    def target(x: Tensor, observations: Any, actions: Any, context: Any, infos: Any) -> Tensor:
        return 2.0 * infos["landed"]

    env = LeaderReward(Throw(), landing, 1, target, 0.9, info_keys=["landed"])
    oracle = followers.TrajectoryOracle(env, Thrower())
    estimator = CriticEstimator(2000, hidden=(), error_groups=20)
    estimator.bind(oracle)
    x, rng = torch.tensor([0.2], dtype=F64), np.random.default_rng(0)
    estimate = estimator.estimate(oracle, x, 0, rng)
    assert deviation(estimate, torch.tensor([2.0], dtype=F64)) < 4
    assert estimate.gradient[0] == pytest.approx(2.0, abs=0.2)


def test_an_x_inside_is_spoken_of() -> None:
    inside = LeaderParameters(Walk(), ["drift"], -1.0, 1.0, lambda x, o, a, c: 0.0 * a, 0.8)
    with pytest.warns(
        errors.FrozenLeaderWarning, match=r"LeaderParameters inside LeaderReward has a leader .* stays at \[0\.3\]"
    ):
        LeaderReward(inside, lambda x, o, a, c: x[0] * a, 1, lambda x, o, a, c: x[0] * a, 0.8)


# ---------------------------------------------------------------------------------------- dynamics on the line, known


class Line(gym.Env[Any, Any]):
    """s' = s / 2 + drift + a + noise, for ever; the follower is paid 0.3 s."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, ends: bool = False) -> None:
        self.drift, self._ends = 0.0, ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._state, self._time = self.np_random.standard_normal(), 0
        return np.array([self._state]), {}

    def step(self, action: Any) -> Any:
        paid = 0.3 * self._state
        self._state = self._state / 2 + self.drift + action + 0.5 * self.np_random.standard_normal()
        self._time += 1
        return np.array([self._state]), paid, self._ends and self._time == 3, self._time == 30, {}


class Pusher(followers.Follower):
    """The answer to 0.3 s + x0 a: V has slope 0.3 / (1 - 0.4), so a = 1 with probability sigmoid((x0 + 0.8 * 0.5) / lambda)."""

    regularization = 0.5

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        p = 1.0 / (1.0 + np.exp(-(task.leader[0] + 0.4) / self.regularization))

        class Telling:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return int(rng.random() < p)

            def probabilities(self, observation: Any) -> Any:
                return np.array([1.0 - p, p])

            def probabilities_batch(self, observations: Any) -> Any:
                return np.tile([1.0 - p, p], (len(observations), 1))

        return Telling()


def line(ends: bool = False, **options: Any) -> LeaderReward:
    def push(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return x[0] * actions

    def place(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return observations[:, 0]

    def twin(x: Any, observation: Any, action: Any, context: Any) -> Any:
        return x[0] * action, observation[0]

    return LeaderReward(Line(ends), push, 2, place, 0.8, parameters=["drift"], step_rewards=twin, **options)


def density(x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor:
    return -2.0 * (next_observations - observations / 2 - x[1] - actions[:, None])[:, 0] ** 2


def draw(x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
    return observations / 2 + x[1] + actions[:, None] + 0.5 * torch.special.ndtri(noise)


DRAWS: dict[str, Any] = {
    "draw_transitions": draw,
    "noise_dim": 1,
    "reward": lambda observations, actions, context: 0.3 * observations[:, 0],
}


@pytest.mark.parametrize("known", [{"log_transitions": density}, DRAWS, DRAWS | {"log_transitions": density}])
def test_known_dynamics_move_with_x(known: dict[str, Any]) -> None:
    """F = 2 (p + x1) k + const, k = 1 / (1 - 0.8) - 1 / (1 - 0.4), p = sigmoid(2 (x0 + 0.4))."""
    oracle = followers.TrajectoryOracle(line(**known), Pusher())
    estimator = CriticEstimator(6000, hidden=(), error_groups=20)
    estimator.bind(oracle)
    x = torch.tensor([0.3, -0.2], dtype=F64)
    estimate = estimator.estimate(oracle, x, 0, np.random.default_rng(0))
    p, k = torch.sigmoid(2 * (x[0] + 0.4)), 10.0 / 3.0
    exact = torch.stack([4 * k * p * (1 - p), torch.tensor(2 * k, dtype=F64)])
    assert relative_error(estimate.gradient, exact) < 0.1
    assert deviation(estimate, exact) < 4


def test_draws_are_for_leaders_that_can_take_them() -> None:
    with pytest.raises(errors.UnsupportedError, match="only draws next states; give the wrapper log_transitions="):
        FirstOrderEstimator(0.3).bind(followers.TrajectoryOracle(line(**DRAWS), Pusher()))
    FirstOrderEstimator(0.3).bind(followers.TrajectoryOracle(line(**DRAWS, log_transitions=density), Pusher()))
    oracle = followers.TrajectoryOracle(line(ends=True, **DRAWS), Pusher())
    estimator = CriticEstimator(100, hidden=())
    estimator.bind(oracle)
    with pytest.raises(errors.UnsupportedError, match="an episode has terminated"):
        estimator.estimate(oracle, torch.zeros(2, dtype=F64), 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draw_transitions": draw}, errors.OptionError, "noise_dim is missing; draw_transitions, noise_dim and reward go"),
        (DRAWS | {"noise_dim": -1}, errors.OptionError, "noise_dim is -1"),
        (DRAWS | {"reward": lambda o, a, c: 1.0 + a}, errors.ModelError, "where the environment paid .*; expected the same"),
        (DRAWS | {"draw_transitions": lambda x, o, a, n, c: x[1] * o[:, 0]}, errors.ModelError, r"returned shape \(8,\)"),
        (DRAWS | {"draw_transitions": lambda x, o, a, n, c: x[1].detach() * o}, errors.ModelError, "leaves torch"),
        (DRAWS | {"draw_transitions": 3}, errors.OptionError, "draw_transitions is 3"),
    ],
)
def test_bad_draws_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        line(**options)


def test_draws_have_no_outcomes() -> None:
    with pytest.raises(errors.OptionError, match="takes rewards, which draws do not have"):
        LeaderReward(Line(), lambda x, o, a, c, rewards: x[0] * rewards, 2, lambda x, o, a, c: o[:, 0], 0.8, **DRAWS)


def test_episodes_of_one_step_and_observations_of_parts() -> None:
    """Blackjack for who always sticks: no next state is of consequence, and observations are tuples."""
    env = LeaderReward(
        gym.make("Blackjack-v1"),
        bonus=lambda x, observations, actions, context: x[0] * (observations[0] < 12) - x[0] * actions,
        leader_space=1,
        leader_reward=lambda x, observations, actions, context: observations[0] / 21.0,
        discount=0.9,
    )
    leader = leaders.FirstOrder(0.1, weight=0.1, env_steps=50)
    assert torch.isfinite(leaders.optimize(env, leader, followers.CallableFollower(lambda observation: 0), 2, seed=0).x).all()
