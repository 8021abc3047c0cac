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
from bocmdp_gym.envs import TaxDesign
from bocmdp_gym.wrappers import LeaderReward
from leaders.checkpoints import Checkpoints
from leaders.gradients import CriticEstimator, Estimate, ExactEstimator
from leaders.gradients import _adjoint_steps as steps
from leaders.gradients import _adjoint_tables as tables
from leaders.gradients._adjoint import Features, Fit, LinearSystem, fit_values, step_weights, weigh
from leaders.gradients._points import Points, no_weights
from leaders.gradients.exact import leader_values
from leaders.gradients.needs import LOOKED_AT
from tests.problems import four_rooms, random_model, random_x, relative_error

PARTS = ("reward", "leader_reward", "transition", "initial")
F64 = torch.float64


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


@pytest.mark.parametrize("part", [*PARTS, "termination"])
def test_each_term_alone_on_a_table(part: str) -> None:
    model = _model((part,))
    estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(200_000, error_groups=20), model)
    assert _deviation(estimate, exact.gradient) < 4
    assert relative_error(estimate.gradient, exact.gradient) < 0.1


def test_on_a_table_it_tends_to_the_exact_gradient() -> None:
    model, distances = _model(), []
    for env_steps in (2000, 200_000):
        estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(env_steps), model)
        distances.append(relative_error(estimate.gradient, exact.gradient))
        assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.05)
    assert distances[1] < 0.02
    assert distances[1] < distances[0] / 4


def test_networks_do_what_linear_values_do() -> None:
    model = _model()
    estimate, exact = _estimates(TabularEnv(model, horizon=None), CriticEstimator(30_000, hidden=(32,), epochs=6), model)
    assert relative_error(estimate.gradient, exact.gradient) < 0.08


def test_the_held_out_error_separates_values_that_explain_returns_from_others() -> None:
    near = _model(seed=1, discount=0.3, leader_discount=0.1)  # almost only the next reward counts
    good, _ = _estimates(TabularEnv(near, horizon=None), CriticEstimator(5000), near)
    far = _model()  # returns are mostly chance
    bad, _ = _estimates(TabularEnv(far, horizon=None), CriticEstimator(5000), far)
    assert good.metrics["critic_error"] < 0.6
    assert 0.7 < bad.metrics["critic_error"] < 1.1
    assert 0.0 < good.metrics["follower_critic_error"] < 1.1


def test_values_worse_than_a_constant_are_warned_about_once() -> None:
    """Rewards that follow the sign of a coordinate that comes from nowhere: 65 features, some 30 points."""
    leader = leaders.HPGD(0.1, 12, estimator="critic")
    with pytest.warns(errors.CriticWarning, match="critic_error .* worse than a constant") as caught:
        leaders.optimize(_Line(), leader, _Gaussian(), 8, x0=[0.0], seed=0)
    assert len([one for one in caught if one.category is errors.CriticWarning]) == 1


def test_values_continue_where_a_time_limit_cuts() -> None:
    model = _model(("reward", "leader_reward"), terminating=False, leader_discount=0.7)
    estimate, exact = _estimates(TabularEnv(model, horizon=30), CriticEstimator(100_000), model)
    assert relative_error(estimate.gradient, exact.gradient) < 0.05
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.05)


@pytest.mark.parametrize("hidden", [None, (16,)])
@pytest.mark.parametrize("moving", [("reward", "leader_reward"), PARTS])
def test_short_rollouts_are_continued_by_values_and_their_derivatives(moving: tuple[str, ...], hidden: Any) -> None:
    """Four steps, after which 0.8^4 = 0.41 of the leader's return is left."""
    model = _model(moving, terminating=False)
    estimate, exact = _estimates(TabularEnv(model, horizon=200), CriticEstimator(30_000, horizon=4, hidden=hidden), model)
    assert relative_error(estimate.gradient, exact.gradient) < 0.1
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.1)


# ------------------------------------------------------------------------------------ the same problem, not as a table


class _Disguise(ConfigurableEnv, BOCMDP):
    """A tabular problem seen only through vectors of numbers: its own `BOCMDP` model, and no `TabularBOCMDP` to be found."""

    def __init__(self, model: TabularBOCMDP, horizon: int | None = None):
        self._tables, self._env = model, TabularEnv(model, horizon=horizon)
        self.horizon = horizon
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


@pytest.mark.parametrize("action_samples", [0, 2])
def test_policies_that_tell_no_probabilities_are_asked_to_act(action_samples: int) -> None:
    """Or, with 0, what they do in the states visited is regressed."""
    model = _model(("reward", "leader_reward"), contexts=1, discount=0.5, leader_discount=0.5)
    estimator = CriticEstimator(10_000, hidden=(64,), epochs=10, action_samples=action_samples, error_groups=20)
    estimate, exact = _estimates(_Disguise(model), estimator, model, _Seeing(silent=True))
    assert relative_error(estimate.gradient, exact.gradient) < 0.3
    assert _deviation(estimate, exact.gradient) < 4


def test_an_agent_is_called_for_the_steps_it_takes_and_no_more() -> None:
    calls = []

    def agent(observation: Any, rng: np.random.Generator) -> int:
        calls.append(1)
        return int(rng.integers(3))

    model = _model(("reward", "leader_reward"), contexts=1)
    for action_samples in (None, 2):
        calls.clear()
        leader = leaders.HPGD(1e-6, 600, estimator="critic", hidden=(8,), action_samples=action_samples, regularization=0.5)
        result = leaders.optimize(_Disguise(model), leader, followers.CallableFollower(agent), 1, seed=0)
        assert len(calls) == result.history["agent_calls"][0] == result.env_steps * (1 + (action_samples or 0)) + LOOKED_AT


# --------------------------------------------------------------- the mathematics: exact values, wrong fits, the dual form


def _wrong(size: int, rng: np.random.Generator) -> LinearSystem:
    """A fit of derivatives that has nothing to do with the problem: theirs have the wrong sign."""
    return LinearSystem(-np.eye(size) + 0.3 * rng.standard_normal((size, size)) / size**0.5)


def _wrong_steps(phi: Any, rng: np.random.Generator) -> LinearSystem:
    gram = phi.T @ phi + np.eye(phi.shape[1])
    return LinearSystem(-gram @ (np.eye(len(gram)) + 0.3 * rng.standard_normal(gram.shape) / len(gram) ** 0.5))


class _Exact:
    """A model's exact values, and batches of its trajectories."""

    def __init__(self, moving: tuple[str, ...], **options: Any):
        self.model = _model(moving, contexts=1, **options)
        self.oracle = followers.TrajectoryOracle(TabularEnv(self.model, horizon=None), followers.SoftPolicyIteration(1.0))
        self.x, self.rng = random_x(self.model.leader_dim), np.random.default_rng(1)
        self.policy = self.oracle.respond(self.x, 0, self.rng)
        self.mdps = self.oracle.configure(self.x)
        self.arrays = self.mdps.arrays(0)
        assert self.policy.table is not None
        assert self.policy.value is not None
        self.follower, self.values = self.policy.value, leader_values(self.arrays, self.policy.table)
        self.advantage = self.values.q - self.values.value[:, None]
        exact = ExactEstimator()
        exact.bind(self.oracle)
        self.gradient = exact.estimate(self.oracle, self.x, 0, self.rng).gradient

    def batch(self) -> Any:
        return self.oracle.sample(self.policy, 1000, self.rng)

    def on_table(self, batch: Any, trace: float, told: bool, knows: bool) -> Tensor:
        """One estimate with exact values and a wrong fit of their derivatives."""
        table = tables.Table(
            self.arrays, self.policy.table if told else None, knows, 1.0, self.model.discount, self.model.leader_discount
        )
        fitted, weighed = (batch.episodes(np.arange(first, batch.n_episodes, 2)) for first in (0, 1))
        wrong = np.random.default_rng(5)
        system = _wrong(self.model.n_states + 1, wrong)
        fit = tables.fit_table(table, fitted)._replace(
            system=system, leader=self.values.value, follower=self.follower, advantage=self.advantage
        )
        w_reward, w_leader, _ = (w / weighed.n_episodes for w in tables.table_weights(table, fit, weighed, trace))
        return self.mdps.vjp(tables.model_weights(table, fit, w_reward, w_leader, fit.leader, self.model.moving), 0)

    def on_steps(self, batch: Any, trace: float) -> Tensor:
        """The same from steps, with random features, scores and baselines."""
        wrong = np.random.default_rng(5)
        shown = wrong.standard_normal((self.model.n_states, 6))
        shown[:, 0], shown[:, 1], shown[:, 2] = 1.0, self.values.value, self.follower
        phi, finals = shown[batch.states], shown[batch.final_states] * ~batch.terminated[:, None]
        following = np.concatenate([phi[1:], phi[:1]])
        following[batch.ends - 1] = finals
        problem = steps.Problem(
            batch, Features(phi, following, finals), batch.leader_rewards, batch.rewards, 1.0, self.model.discount,
            self.model.leader_discount, trace,
        )  # fmt: skip
        fit = Fit(_wrong_steps(phi, wrong), _wrong(6, wrong), np.eye(6)[1], np.eye(6)[2])
        points = Points(self.model, self.x, batch)
        total = no_weights(batch, None)
        advantages = steps.Advantages(self.advantage[batch.states, batch.actions])
        groups = steps.groups_of(batch, 1)
        for half in steps.halves(batch):
            steps.sampled_weights(problem, half, fit, advantages, groups, [total])
        return points.gradient(total)


def _z_scores(exact: _Exact, estimates: list[Tensor]) -> float:
    stacked = torch.stack(estimates)
    error = stacked.std(0) / len(estimates) ** 0.5
    return float(((stacked.mean(0) - exact.gradient).abs() / error).max())


@pytest.mark.parametrize(
    ("moving", "told", "knows"),
    [(("reward",), True, False), (("reward", "leader_reward"), False, False), (PARTS, True, True)],
)
def test_trace_1_is_unbiased_for_a_wrong_fit_of_derivatives_on_a_table(moving: tuple[str, ...], told: bool, knows: bool) -> None:
    exact = _Exact(moving)
    batches = [exact.batch() for _ in range(150)]
    assert _z_scores(exact, [exact.on_table(batch, 1.0, told, knows) for batch in batches]) < 4
    assert _z_scores(exact, [exact.on_table(batch, 0.0, told, knows) for batch in batches]) > 6  # so the fit was wrong


@pytest.mark.parametrize("moving", [("reward",), ("transition",), ("initial",), PARTS])
def test_trace_1_is_unbiased_for_random_features_on_steps(moving: tuple[str, ...]) -> None:
    exact = _Exact(moving)
    batches = [exact.batch() for _ in range(150)]
    assert _z_scores(exact, [exact.on_steps(batch, 1.0) for batch in batches]) < 4
    if "reward" in moving:  # derivatives of the follower's value matter most there
        assert _z_scores(exact, [exact.on_steps(batch, 0.0) for batch in batches]) > 6


def test_the_dual_form_is_the_primal_one() -> None:
    """Weights against d-vectors: dV = M^-1 sum_A phi g at every step, cuts continued by dVbar."""
    rng, n, k, d = np.random.default_rng(0), 40, 5, 3
    gamma, leader_gamma, trace = 0.8, 0.7, 0.6
    ends = np.array([10, 17, 30, 40])
    terminated = np.array([False, True, False, False])
    phi, finals = rng.standard_normal((n, k)), rng.standard_normal((4, k)) * ~terminated[:, None]
    following = np.concatenate([phi[1:], phi[:1]])
    following[ends - 1] = finals
    fitted_episodes = np.array([True, False, True, False])
    fitted = np.repeat(fitted_episodes, np.diff(ends, prepend=0))
    g, paid, kicks = rng.standard_normal((n, d)), rng.standard_normal((n, d)), rng.standard_normal(n)
    at = phi[fitted], following[fitted]
    fit = fit_values(*at, np.zeros(fitted.sum()), np.zeros(fitted.sum()), gamma, leader_gamma)
    weighed = weigh(kicks, ends, trace, gamma, leader_gamma).only(~fitted, ~fitted_episodes)
    cross = kicks[:, None] * (gamma * following - phi)
    base, visits = step_weights(fit, Features(phi, following, finals), cross, weighed, fitted, gamma)
    dual = (base + visits * kicks) @ g + visits @ paid

    derivative = fit.system.solve(at[0].T @ g[fitted])  # (K, d)
    error = g + (gamma * following - phi) @ derivative
    leader_derivative = fit.leader_system.solve(at[0].T @ (kicks[:, None] * error + paid)[fitted])
    primal = np.zeros(d)
    for episode in (1, 3):
        e, power = 0.0, 1.0
        for i in range(ends[episode - 1], ends[episode]):
            e = trace * gamma * e + power * kicks[i]
            primal += e * error[i] + power * paid[i]
            power *= leader_gamma
        primal += power * finals[episode] @ leader_derivative
    np.testing.assert_allclose(dual, primal, rtol=1e-9)


def test_no_episode_is_weighed_by_what_it_was_fitted_by(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = _Exact(("reward",))
    batch = exact.batch()
    one, other = steps.halves(batch)
    assert (one.fitted_episodes != other.fitted_episodes).all()
    assert abs(one.n_weighed - other.n_weighed) <= 1
    phi = np.ones((batch.n_steps, 2))
    problem = steps.Problem(
        batch, Features(phi, phi, phi[: batch.n_episodes] * 0.0), batch.rewards, batch.rewards, 1.0, 0.7, 0.8, 1.0
    )
    fit = Fit(_wrong(2, exact.rng), _wrong(2, exact.rng), np.zeros(2), np.zeros(2))
    for half in (one, other):
        np.testing.assert_array_equal(half.fitted, np.repeat(half.fitted_episodes, batch.lengths))
        ((weights, episodes),) = problem.steps(half, fit, batch.rewards, phi, steps.groups_of(batch, 1))
        np.testing.assert_array_equal(weights.visits > 0.0, ~half.fitted)
        np.testing.assert_array_equal(episodes, ~half.fitted_episodes)
    seen: list[Any] = []
    fit_table, table_weights = tables.fit_table, tables.table_weights
    monkeypatch.setattr(tables, "fit_table", lambda table, fitted: seen.append(fitted) or fit_table(table, fitted))
    monkeypatch.setattr(
        tables, "table_weights", lambda table, fit, own, trace: seen.append(own) or table_weights(table, fit, own, trace)
    )
    estimator = CriticEstimator(1000)
    estimator.bind(exact.oracle)
    estimator.estimate(exact.oracle, exact.x, 0, exact.rng)
    first, second, third, fourth = (own.rewards for own in seen)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, fourth)
    np.testing.assert_array_equal(second, third)


def test_groups_of_episodes_add_up_to_the_estimate() -> None:
    """On a table and on steps, with cuts: a standard error moves no estimate."""
    model = _model(terminating=False)
    for hidden in (None, ()):
        estimates = []
        for groups in (0, 5):
            estimator = CriticEstimator(2000, hidden=hidden, error_groups=groups)
            env = TabularEnv(model, horizon=30) if hidden is None else _Disguise(_model(contexts=1))
            follower = followers.SoftPolicyIteration(1.0) if hidden is None else _Seeing()
            estimates.append(_estimates(env, estimator, model if hidden is None else _model(contexts=1), follower)[0].gradient)
        torch.testing.assert_close(*estimates, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ constants


@pytest.mark.parametrize("trace", [0.0, 0.5])
@pytest.mark.parametrize("moving", [("reward",), PARTS])
def test_a_constant_added_to_the_leaders_reward_changes_no_estimate(moving: tuple[str, ...], trace: float) -> None:
    gradients = {}
    for constant in (0.0, 100.0):
        model = _model(moving, terminating=False, contexts=1)
        given = model.part("leader_reward", random_x(4)).detach()
        shifted = model.replace(leader_reward=given + constant)
        for hidden in (None, ()):
            env: Any = TabularEnv(shifted, horizon=100) if hidden is None else _Disguise(shifted, horizon=100)
            follower = followers.SoftPolicyIteration(1.0) if hidden is None else _Seeing()
            estimator = CriticEstimator(2000, hidden=hidden, trace=trace)
            gradients[constant, hidden] = _estimates(env, estimator, shifted, follower)[0].gradient
    for hidden in (None, ()):
        torch.testing.assert_close(gradients[0.0, hidden], gradients[100.0, hidden], rtol=1e-6, atol=1e-8)


def _swinging(own: float, constant: float = 0.0) -> LeaderReward:
    """A pendulum for 60 steps; the leader is paid x[0], the angle ``own`` times, and a constant."""
    return LeaderReward(
        gym.make("Pendulum-v1", max_episode_steps=60),
        bonus=lambda x, observations, actions, context: x[1] * actions[:, 0],
        leader_space=2,
        leader_reward=lambda x, observations, actions, context: x[0] + own * observations[:, 0] + constant,
        discount=0.9,
    )


def _push(observation: Any, rng: np.random.Generator) -> Any:
    return rng.uniform(-2.0, 2.0, 1).astype(np.float32)


@pytest.mark.parametrize("regularization", [0.1, 0.01])
def test_what_is_known_of_the_leaders_reward_needs_no_luck(regularization: float) -> None:
    """Its reward is 0 everywhere, and dF/dx[0] the sum of discounts: whatever lambda divides, nothing is added to that."""
    leader = leaders.HPGD(0.1, 600, "critic", regularization=regularization)
    oracle = followers.TrajectoryOracle(_swinging(0.0), followers.CallableFollower(_push))
    for seed in range(3):
        gradient = leader.estimate(oracle, torch.zeros(2, dtype=F64), 0, np.random.default_rng(seed))
        torch.testing.assert_close(gradient, torch.tensor([10.0, 0.0], dtype=F64), rtol=0.02, atol=1e-9)


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
def test_a_constant_adds_no_noise_beyond_tables() -> None:
    estimates = []
    for constant in (0.0, 100.0):
        leader = leaders.HPGD(0.1, 600, "critic", regularization=0.1)
        oracle = followers.TrajectoryOracle(_swinging(1.0, constant), followers.CallableFollower(_push))
        estimates.append(leader.estimate(oracle, torch.zeros(2, dtype=F64), 0, np.random.default_rng(0)))
    assert float((estimates[0] - estimates[1]).norm()) < 0.1 * float((estimates[0] - torch.tensor([10.0, 0.0])).norm() + 1.0)


# -------------------------------------------------------------------------------------------- models that draw next states


def test_drawn_next_states_give_the_gradient_of_a_fine_grid() -> None:
    """Tax design near its optimum, MultiDiscrete actions, assets as observations."""
    envs = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point")
    fine = followers.TrajectoryOracle(TaxDesign(grid_size=161), followers.SoftPolicyIteration(0.2))
    exact = ExactEstimator()
    exact.bind(fine)
    oracle = followers.TrajectoryOracle(envs, followers.SoftPolicyIteration(0.2))
    estimator = CriticEstimator(3000)
    for point in (np.zeros(4), np.array([1.4, -1.0, -2.0, 0.0])):
        estimator.bind(oracle)
        x, rng = torch.from_numpy(point), np.random.default_rng(0)
        expected = exact.estimate(fine, x, 0, rng).gradient
        for _ in range(2):
            estimate = estimator.estimate(oracle, x, 0, rng)
            assert float((estimate.gradient - expected).norm()) < 2.5  # of 11.7 and 0.5
        assert estimate.metrics["critic_error"] < 0.9
    envs.close()


def test_draws_are_unbiased_at_any_trace() -> None:
    """The gradients at trace 0 and 1 agree within their noise: carried weights meet the same derivatives."""
    envs = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point", grid_size=41)
    means, errors = [], []
    for trace in (0.0, 1.0):
        oracle = followers.TrajectoryOracle(envs, followers.SoftPolicyIteration(0.2))
        estimator, rng = CriticEstimator(1000, trace=trace, hidden=(32,)), np.random.default_rng(0)
        estimator.bind(oracle)
        found = torch.stack([estimator.estimate(oracle, torch.zeros(4, dtype=F64), 0, rng).gradient for _ in range(12)])
        means.append(found.mean(0))
        errors.append(found.std(0) / 12**0.5)
    assert float(((means[0] - means[1]).abs() / torch.stack(errors).norm(dim=0)).max()) < 4
    envs.close()


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


@pytest.mark.parametrize("action_samples", [None, 0])
def test_continuous_actions_give_the_closed_form_gradient(action_samples: int | None) -> None:
    oracle = followers.TrajectoryOracle(_Line(), _Gaussian())
    estimator, x = CriticEstimator(20_000, action_samples=action_samples), torch.tensor([0.3], dtype=torch.float64)
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, x, 0, np.random.default_rng(0))
    factor = 1.0 / (1.0 - 0.8 * 0.8)
    expected = torch.tensor([-2.0 * (0.3 - 1.0) / 3.0 * factor], dtype=torch.float64)
    assert relative_error(estimate.gradient, expected) < 0.12  # the spread of the fit, 0.06 at 20,000 steps, included
    assert estimate.leader_return == pytest.approx(-((0.7**2) / 3.0 + 0.5) * factor, abs=0.05)


class _Drawn(_Line):
    """`_Line` without ends, whose model draws next states: F = E rbar / (1 - gamma_L)."""

    noise_dim = 1
    horizon = 40

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        self._age += 1
        return observation, reward, False, self._age == self.horizon, info

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        self._age = 0
        return super()._reset(state)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        return 2.0 * noise - 1.0


@pytest.mark.parametrize("trace", [0.0, 1.0])
def test_continuous_actions_and_draws_give_the_closed_form_gradient(trace: float) -> None:
    oracle = followers.TrajectoryOracle(_Drawn(), _Gaussian())
    estimator, x = CriticEstimator(4000, trace=trace, hidden=(16,)), torch.tensor([0.3], dtype=F64)
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    found = torch.stack([estimator.estimate(oracle, x, 0, rng).gradient for _ in range(8)])
    expected = 2.0 * 0.7 / 3.0 / (1.0 - 0.8)
    assert float((found.mean() - expected).abs()) < 4 * float(found.std()) / 8**0.5
    assert float(found.std()) / 8**0.5 < 0.06 * expected  # so an error of a quarter would show


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
        leaders.optimize(moving, leaders.HPGD(estimator="critic", env_steps=100, hidden=(8,)), follower, 3)

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
    with pytest.raises(errors.OptionError, match="env_steps=10 is one episode"):
        leaders.optimize(one_episode, leaders.HPGD(estimator="critic", env_steps=10), follower, 3)
    with pytest.raises(errors.OptionError, match="hidden is 0"):
        leaders.HPGD(estimator="critic", hidden=(0,))
    with pytest.raises(errors.OptionError, match="learning_rate is 0"):
        CriticEstimator(learning_rate=0.0)

    class Words(_Line):
        observation_space = gym.spaces.Text(5)  # type: ignore[assignment]

    with pytest.raises(errors.UnsupportedError, match="flatten it"):
        leaders.optimize(Words(), critic, _Gaussian(), 3)


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
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


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
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
