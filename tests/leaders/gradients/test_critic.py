from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import followers
import leaders
from bocmdp_gym import BOCMDP, ConfigurableEnv, TabularBOCMDP, TabularEnv, errors
from bocmdp_gym.wrappers import LeaderReward
from leaders.checkpoints import Checkpoints
from leaders.gradients import CriticEstimator, Estimate, ExactEstimator
from tests.problems import four_rooms, random_model, random_x, relative_error

PARTS = ("reward", "leader_reward", "transition", "initial")


def _model(moving: tuple[str, ...] = PARTS, seed: int = 0, **options: Any) -> TabularBOCMDP:
    defaults: dict[str, Any] = {"states": 5, "dim": 4, "discount": 0.7, "leader_discount": 0.8, "moving": moving}
    return random_model(seed, **(defaults | options))


def _estimates(env: Any, estimator: CriticEstimator, model: TabularBOCMDP, follower: Any = None) -> tuple[Estimate, Estimate]:
    """A stochastic estimate in the last context, and the exact one of ``model``."""
    oracle = followers.TrajectoryOracle(env, follower or followers.SoftPolicyIteration(1.0))
    estimator.bind(oracle)
    exact_oracle, exact = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(1.0)), ExactEstimator()
    exact.bind(exact_oracle)
    x, context, rng = random_x(model.leader_dim), model.n_contexts - 1, np.random.default_rng(0)
    return estimator.estimate(oracle, x, context, rng), exact.estimate(exact_oracle, x, context, rng)


def _deviation(estimate: Estimate, exact: Tensor) -> float:
    assert estimate.standard_error is not None
    return float(((estimate.gradient - exact).abs() / estimate.standard_error).max())


@pytest.mark.parametrize("part", PARTS)
def test_each_term_alone_on_a_table(part: str) -> None:
    model = _model((part,))
    estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(200_000, error_groups=20), model)
    assert _deviation(estimate, exact.gradient) < 4
    assert relative_error(estimate.gradient, exact.gradient) < 0.1


def test_on_a_table_it_tends_to_the_exact_gradient() -> None:
    model, distances = _model(), []
    for steps in (2000, 200_000):
        estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(steps), model)
        distances.append(relative_error(estimate.gradient, exact.gradient))
        assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.05)
    assert distances[1] < 0.02
    assert distances[1] < distances[0] / 4


def test_networks_do_what_linear_values_do() -> None:
    model = _model()
    estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(30_000, hidden=(32,), epochs=6), model)
    assert relative_error(estimate.gradient, exact.gradient) < 0.08


def test_the_held_out_error_separates_a_good_fit_from_a_bad_one() -> None:
    model = _model(seed=1, discount=0.3, leader_discount=0.1)  # almost only the next reward counts, so values explain returns
    good, _ = _estimates(TabularEnv(model, horizon=None), CriticEstimator(5000), model)
    bad, _ = _estimates(TabularEnv(model, horizon=None), CriticEstimator(5000, hidden=(8,), epochs=1, learning_rate=1e-6), model)
    assert good.metrics["critic_error"] < 0.2
    assert bad.metrics["critic_error"] > 0.5
    assert 0.0 < good.metrics["follower_critic_error"] < 1.1


def test_values_continue_where_a_time_limit_cuts() -> None:
    model = _model(("reward", "leader_reward"), terminating=False, leader_discount=0.7)
    estimate, exact = _estimates(TabularEnv(model, horizon=30), CriticEstimator(100_000), model)
    assert relative_error(estimate.gradient, exact.gradient) < 0.05
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.05)


# ------------------------------------------------------------------------------------ the same problem, not as a table


class _Disguise(ConfigurableEnv, BOCMDP):
    """A tabular problem seen only through vectors of numbers: its own `BOCMDP` model, and no `TabularBOCMDP` to be found."""

    def __init__(self, model: TabularBOCMDP):
        self._tables, self._env = model, TabularEnv(model, horizon=None)
        self._codes = np.random.default_rng(0).standard_normal((model.n_states, 3))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = self._env.action_space
        self._setup_configuration(
            model.leader_space, gym.spaces.Discrete(model.n_contexts), model.discount, model.leader_discount
        )
        self.model, self.leader_dim = self, model.leader_dim

    def states(self, observations: Any) -> Any:
        distances = np.square(np.asarray(observations)[:, None] - self._codes).sum(-1)
        return distances.argmin(-1)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        options = {"leader": self.leader, "context": self.context}
        observation, _ = self._env.reset(seed=int(self.np_random.integers(2**31)), options=options)
        return self._codes[observation].copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = self._env.step(action)
        return (self._codes[observation].copy(), *rest)  # type: ignore[return-value]

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return self._tables.rewards(x, self.states(observations), actions, context)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return self._tables.leader_rewards(x, self.states(observations), actions, context)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        return self._tables.log_transitions(x, self.states(observations), actions, self.states(next_observations), context)

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        return self._tables.log_initials(x, self.states(observations), context)


class _Seeing(followers.Follower):
    """Plans behind the scenes, and answers from what it sees."""

    regularization = 1.0

    def __init__(self, silent: bool = False):
        self._silent = silent

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        core: Any = task.env.unwrapped
        table = core._tables.solve(task.leader, 1.0).policy[task.context].numpy()

        class Silent:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return rng.choice(table.shape[-1], p=table[core.states(observation[None])[0]])

        class Telling(Silent):
            def probabilities(self, observation: Any) -> Any:
                return table[core.states(observation[None])[0]]

            def probabilities_batch(self, observations: Any) -> Any:
                return table[core.states(observations)]

        return Silent() if self._silent else Telling()


def test_continuous_observations_and_transitions_that_depend_on_x() -> None:
    model = _model(contexts=1)
    estimator = CriticEstimator(20_000, hidden=(64,), epochs=10, error_groups=20)
    estimate, exact = _estimates(_Disguise(model), estimator, model, _Seeing())
    assert relative_error(estimate.gradient, exact.gradient) < 0.15
    assert _deviation(estimate, exact.gradient) < 4
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.1)


def test_policies_that_tell_no_probabilities_are_asked_to_act() -> None:
    model = _model(("reward", "leader_reward"), contexts=1, discount=0.5, leader_discount=0.5)
    estimator = CriticEstimator(10_000, hidden=(64,), epochs=10, action_samples=2, error_groups=20)
    estimate, exact = _estimates(_Disguise(model), estimator, model, _Seeing(silent=True))
    assert relative_error(estimate.gradient, exact.gradient) < 0.3
    assert _deviation(estimate, exact.gradient) < 4


# ------------------------------------------------------------------------------ continuous states and actions, closed form


class _Line(ConfigurableEnv, BOCMDP):
    r"""s ~ U(-1, 1), drawn again in each step, r = x a s - a^2/2, rbar = -(a - s)^2, the episode ends with probability 0.2.

    With regularization lambda the best response is a ~ N(x s, lambda), so per step E rbar = -(x - 1)^2/3 - lambda, and
    F = E rbar / (1 - 0.8 gamma_L).
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    leader_dim = 1

    def __init__(self) -> None:
        self._setup_configuration(gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Discrete(1), 0.9, 0.8)
        self.model = self

    def _draw(self) -> Any:
        self._state = self.np_random.uniform(-1.0, 1.0, 1)
        return self._state.astype(np.float32)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return self._draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        a, s = float(action[0]), float(self._state[0])
        reward, leader_reward = float(self.leader[0]) * a * s - a**2 / 2, -((a - s) ** 2)
        ends = bool(self.np_random.random() < 0.2)
        return self._draw(), reward, ends, False, {"leader_reward": leader_reward, "context": self.context}

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        a, s = torch.as_tensor(actions[:, 0]), torch.as_tensor(observations[:, 0])
        return x[0] * a * s - a**2 / 2

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return torch.as_tensor(-((actions[:, 0] - observations[:, 0]) ** 2))


class _Gaussian(followers.Follower):
    """The best response to `_Line`."""

    regularization = 0.5

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        class Policy:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return task.leader * observation + 0.5**0.5 * rng.standard_normal(1)

            def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
                return task.leader * observations + 0.5**0.5 * rng.standard_normal(observations.shape)

        return Policy()


def test_continuous_actions_give_the_closed_form_gradient() -> None:
    oracle = followers.TrajectoryOracle(_Line(), _Gaussian())
    estimator, x = CriticEstimator(20_000), torch.tensor([0.3], dtype=torch.float64)
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, x, 0, np.random.default_rng(0))
    factor = 1.0 / (1.0 - 0.8 * 0.8)
    expected = torch.tensor([-2.0 * (0.3 - 1.0) / 3.0 * factor], dtype=torch.float64)
    assert relative_error(estimate.gradient, expected) < 0.12  # the spread of the fit, 0.06 at 20,000 steps, included
    assert estimate.leader_return == pytest.approx(-((0.7**2) / 3.0 + 0.5) * factor, abs=0.05)


def test_hpgd_with_a_critic_finds_the_optimum() -> None:
    leader = leaders.HPGD(learning_rate=0.3, env_steps=1000, estimator="critic", hidden=(32,))
    result = leaders.optimize(_Line(), leader, _Gaussian(), 40, x0=[0.0], seed=0)
    assert result.x.item() == pytest.approx(1.0, abs=0.2)
    assert (result.history["critic_error"] < 1.5).all()


# -------------------------------------------------------------------------------------------------------- behaviour


def test_equal_seeds_equal_bits_and_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    leader = leaders.HPGD(learning_rate=0.3, env_steps=200, estimator="critic", hidden=(8,))
    runs = [leaders.optimize(_Line(), leader, _Gaussian(), 3, x0=[0.0], seed=1) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_observations_of_a_table_shown_as_numbers() -> None:
    """Four-Rooms as coordinates: networks see numbers, the model reads states."""
    env = four_rooms(observation="coordinates", discount=0.9)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.1))
    estimator = CriticEstimator(4000, epochs=2)
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, random_x(105), 0, np.random.default_rng(0))
    assert estimate.gradient.shape == (105,)
    assert float(estimate.gradient.norm()) > 0.0


def test_what_cannot_work_is_refused() -> None:
    follower = followers.SoftPolicyIteration(1.0)
    critic = leaders.HPGD(estimator="critic", env_steps=100)
    moving = _model((*PARTS, "termination"))
    with pytest.raises(errors.UnsupportedError, match=r"here termination is a function of x.*ExactGradient"):
        leaders.optimize(moving, critic, follower, 3)

    class Bare(_Line):
        def __init__(self) -> None:
            super().__init__()
            del self.model

    with pytest.raises(errors.UnsupportedError, match=r"needs Bare.model.*ZeroOrder"):
        leaders.optimize(Bare(), critic, _Gaussian(), 3)
    shifted = gym.wrappers.TransformObservation(_Line(), lambda observation: observation + 1, None)
    with pytest.raises(errors.UnsupportedError, match="TransformObservation around it may change"):
        leaders.optimize(shifted, critic, _Gaussian(), 3)
    with pytest.raises(errors.UnsupportedError, match="exposes no action probabilities; use ZeroOrder"):
        leaders.optimize(_Disguise(_model(contexts=1)), critic, _Seeing(silent=True), 3)
    one_episode = TabularEnv(_model(terminating=False), horizon=200)
    with pytest.raises(errors.OptionError, match="env_steps=100 is one episode"):
        leaders.optimize(one_episode, critic, follower, 3)
    with pytest.raises(errors.OptionError, match="hidden is 0"):
        leaders.HPGD(estimator="critic", hidden=(0,))
    with pytest.raises(errors.OptionError, match="learning_rate is 0"):
        CriticEstimator(learning_rate=0.0)

    class Words(_Line):
        observation_space = gym.spaces.Text(5)  # type: ignore[assignment]

    with pytest.raises(errors.UnsupportedError, match="flatten it"):
        leaders.optimize(Words(), critic, _Gaussian(), 3)


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Any, hidden: tuple[int, ...]) -> None:
    leader = leaders.HPGD(learning_rate=0.3, env_steps=100, estimator="critic", hidden=hidden)
    whole = leaders.optimize(_Line(), leader, _Gaussian(), 6, x0=[0.0], seed=1)
    first = Checkpoints(tmp_path, every=3)
    with pytest.raises(KeyboardInterrupt):
        leaders.optimize(_Line(), leader, _Gaussian(), 6, x0=[0.0], seed=1, checkpoints=first, evaluate_every=1, callback=_stop)
    resumed = leaders.optimize(
        _Line(),
        leader,
        _Gaussian(),
        6,
        x0=[0.0],
        seed=1,
        checkpoints=Checkpoints(tmp_path, every=3),
        evaluate_every=1,
        resume=True,
    )
    assert torch.equal(resumed.x, whole.x)


def _stop(progress: Any) -> None:
    if progress.iteration == 4:
        raise KeyboardInterrupt


def test_sb3_follower_on_continuous_observations() -> None:
    """A pole-balancer paid for standing at x[1]: values, networks and trained followers go together."""

    def bonus(x: Tensor, observations: Tensor, actions: Tensor, context: Any) -> Tensor:
        return x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2))

    env = LeaderReward(
        gym.make("CartPole-v1"),
        bonus=bonus,
        leader_space=2,
        leader_reward=lambda x, observations, actions, context: -((observations[:, 0] - 0.5) ** 2),
        discount=0.95,
    )
    follower = followers.SB3Follower("PPO", 256, n_steps=128, batch_size=64)
    leader = leaders.HPGD(0.1, 300, "critic", hidden=(16,), regularization=0.1, error_groups=4)
    result = leaders.optimize(env, leader, follower, 3, x0=[0.1, 0.2], seed=0)
    assert torch.isfinite(result.x).all()
    assert (result.history["gradient_norm"] > 0.0).all()
    assert (result.history["standard_error"] > 0.0).all()
    assert (result.history["critic_error"] > 0.0).all()


@pytest.mark.parametrize("regularization", [0.01, 0.1])
def test_standard_errors_are_those_of_repeats(regularization: float) -> None:
    """Four-Rooms, values as visit averages: the error takes them as given, and comes out at most a third too small."""
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(regularization))
    estimator = CriticEstimator(10_000, error_groups=20)
    estimator.bind(oracle)
    rng, x = np.random.default_rng(0), torch.zeros(105, dtype=torch.float64)
    estimates = [estimator.estimate(oracle, x, 0, rng) for _ in range(60)]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    reported = torch.stack([e.standard_error for e in estimates if e.standard_error is not None]).square().mean(0).sqrt()
    assert float(reported.norm() / spread.norm()) == pytest.approx(1.0, abs=0.3)
