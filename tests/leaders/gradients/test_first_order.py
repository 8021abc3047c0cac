from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import BOCMDP, ConfigurableEnv, TabularBOCMDP, errors
from bocmdp_gym.wrappers import LeaderParameters, LeaderReward
from leaders.gradients import Estimate, FirstOrderEstimator, first_order_weights
from leaders.gradients import _first_order_samples as samples
from tests.problems import (
    F64,
    finite_difference,
    four_rooms,
    four_rooms_model,
    random_model,
    random_x,
    relative_error,
    small_rooms,
)

ALL = ("reward", "leader_reward", "transition", "initial", "termination")
LAMBDA = 0.5


def _model(seed: int = 0, **options: Any) -> TabularBOCMDP:
    return random_model(seed, **{"leader_discount": None, "moving": ALL, **options})


def _estimate(
    env: Any, estimator: FirstOrderEstimator, x: torch.Tensor, follower: Any = None, context: int = 1, seed: int = 0
) -> Estimate:
    follower = followers.SoftPolicyIteration(LAMBDA, tolerance=1e-14) if follower is None else follower
    oracle = followers.TrajectoryOracle(env, follower)
    estimator.bind(oracle)
    return estimator.estimate(oracle, x, context, np.random.default_rng(seed))


def _exact_gradient(model: TabularBOCMDP, x: torch.Tensor, regularization: float, context: int = 1) -> torch.Tensor:
    jacobian: Any = torch.func.jacrev(lambda z: model.leader_return(z, regularization, per_context=True, tolerance=1e-14))(x)
    gradient: torch.Tensor = jacobian[context]
    return gradient


@pytest.mark.parametrize("moving", [ALL, *((name,) for name in ALL)])
def test_the_error_is_quadratic_in_the_weight_two_sided_and_linear_one_sided(moving: tuple[str, ...]) -> None:
    model = _model(moving=moving)
    x = random_x(model.leader_dim)
    exact = _exact_gradient(model, x, LAMBDA)
    for two_sided, order in ((True, 2), (False, 1)):
        near, far = (
            relative_error(_estimate(model, FirstOrderEstimator(w, two_sided, exact=True), x).gradient, exact)
            for w in (1e-3, 1e-2)
        )
        assert far < 0.1
        assert np.log10(far / near) == pytest.approx(order, abs=0.1)


def test_four_rooms_at_the_papers_lambda() -> None:
    model, x = four_rooms_model(), random_x(105, scale=0.01)
    for context in range(2):
        exact = _exact_gradient(model, x, 1e-3, context)
        follower = followers.SoftPolicyIteration(1e-3, tolerance=1e-14)
        for weight, bound in ((1e-4, 1.2e-4), (5e-5, 3e-5)):
            estimate = _estimate(four_rooms(), FirstOrderEstimator(weight, exact=True), x, follower, context)
            assert relative_error(estimate.gradient, exact) < bound
        automatic = _estimate(four_rooms(), FirstOrderEstimator("auto", exact=True), x, follower, context)
        assert relative_error(automatic.gradient, exact) < 2e-3
        assert 1e-5 < automatic.metrics["weight"] < 1e-3


def test_linear_programming_gives_the_gradient_of_the_surrogate() -> None:
    """[max (J + w F) - max J] / w, at lambda 0."""
    model, w = _model(3, discount=0.8), 0.3
    x = random_x(model.leader_dim)

    def optimum(z: torch.Tensor, share: float) -> float:
        oracle = followers.TrajectoryOracle(model, followers.LinearProgramming())
        paid = oracle.configure(z).with_leader_share(share).arrays(1)
        task = oracle.task(z, 1)
        task.mdps = oracle.configure(z).with_leader_share(share)
        policy: Any = followers.LinearProgramming().respond(task, np.random.default_rng(0))
        return float(paid.initial @ policy.value)

    def surrogate(z: torch.Tensor) -> torch.Tensor:
        return torch.tensor((optimum(z, w) - optimum(z, 0.0)) / w, dtype=F64)

    estimate = _estimate(model, FirstOrderEstimator(w, False, exact=True), x, followers.LinearProgramming())
    torch.testing.assert_close(estimate.gradient, finite_difference(surrogate, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("moving", [("reward", "leader_reward"), ALL])
@pytest.mark.parametrize("two_sided", [True, False])
def test_samples_have_the_mean_of_the_exact_weights(moving: tuple[str, ...], two_sided: bool) -> None:
    model = _model(states=5, dim=3, moving=moving, discount=0.6)
    x, w = random_x(3), 0.2
    exact = _estimate(model, FirstOrderEstimator(w, two_sided, exact=True), x)
    sampled = _estimate(model, FirstOrderEstimator(w, two_sided, env_steps=100_000, error_groups=40), x)
    assert sampled.standard_error is not None
    assert float(((sampled.gradient - exact.gradient).abs() / sampled.standard_error).max()) < 4
    assert relative_error(sampled.gradient, exact.gradient) < 0.25
    assert sampled.leader_return == pytest.approx(exact.leader_return, abs=0.05)
    assert sampled.metrics["paid_gain"] == pytest.approx(exact.metrics["paid_gain"], rel=0.25)


class _Restless(BOCMDP):
    """The same problem for leaders that see observations only: what is no table is weighed in a surrogate."""

    def __init__(self, model: TabularBOCMDP):
        self.table = model
        self.leader_dim, self.discount, self.leader_discount = model.leader_dim, model.discount, model.leader_discount

    def rewards(self, x: torch.Tensor, observations: Any, actions: Any, context: Any) -> torch.Tensor:
        return self.table.rewards(x, observations, actions, context)

    def leader_rewards(self, x: torch.Tensor, observations: Any, actions: Any, context: Any) -> torch.Tensor:
        return self.table.leader_rewards(x, observations, actions, context)

    def log_transitions(self, x: torch.Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Any:
        return self.table.log_transitions(x, observations, actions, next_observations, context)

    def log_initials(self, x: torch.Tensor, observations: Any, context: Any) -> Any:
        return self.table.log_initials(x, observations, context)


class _NoTable(ConfigurableEnv):
    """A tabular problem that does not show that it is one."""

    def __init__(self, model: TabularBOCMDP):
        self._inner = bocmdp_gym.TabularEnv(model, horizon=60)
        self.observation_space, self.action_space = self._inner.observation_space, self._inner.action_space
        self.model = _Restless(model)
        self._setup_configuration(self._inner.leader_space, self._inner.context_space, model.discount, leader=model.example)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        self._inner.set_leader(self.leader)
        return self._inner.reset(seed=int(self.np_random.integers(2**31)), options={"context": self.context})

    def step(self, action: Any) -> Any:
        return self._inner.step(action)


class _Best(followers.Follower):
    """Knows the table that the environment hides, and what its share is."""

    exposes_probabilities = True

    def __init__(self, model: TabularBOCMDP, regularization: float | None = LAMBDA):
        self.model, self.regularization = model, regularization

    def respond(self, task: followers.Task, rng: np.random.Generator) -> followers.TabularPolicy:
        mdps = self.model.configure(task.leader).with_leader_share(task.leader_share)
        table = mdps.solve(LAMBDA).policy[task.context].numpy()
        return followers.TabularPolicy(table, task.leader, task.context, states_of=int)


def test_problems_that_are_no_tables_are_weighed_alike() -> None:
    model = _model(states=4, dim=3, contexts=2, moving=ALL[:4], discount=0.6)
    x = random_x(3)
    exact = _estimate(model, FirstOrderEstimator(0.3, exact=True), x)
    sampled = _estimate(_NoTable(model), FirstOrderEstimator(0.3, env_steps=16_000, error_groups=20), x, _Best(model))
    assert sampled.standard_error is not None
    assert float(((sampled.gradient - exact.gradient).abs() / sampled.standard_error).max()) < 4


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("share", lambda paid: dataclasses.replace(paid, share=-paid.share)),
        ("coefficient", lambda paid: dataclasses.replace(paid, coefficient=abs(paid.coefficient))),
        ("entropy", lambda paid: dataclasses.replace(paid, bonus=None)),
        ("reward", lambda paid: dataclasses.replace(paid, batch=dataclasses.replace(paid.batch, rewards=0 * paid.batch.rewards))),
    ],
)
def test_planted_errors_are_seen(monkeypatch: pytest.MonkeyPatch, name: str, plant: Any) -> None:
    model = _model(states=5, dim=3, discount=0.6)
    x = random_x(3)
    exact = _estimate(model, FirstOrderEstimator(0.2, exact=True), x)
    made = samples.SampledGradient.__init__

    def wrong(self: Any, oracle: Any, point: Any, sides: Any, **options: Any) -> None:
        made(self, oracle, point, [plant(one) for one in sides], **options)

    monkeypatch.setattr(samples.SampledGradient, "__init__", wrong)
    sampled = _estimate(model, FirstOrderEstimator(0.2, env_steps=100_000, error_groups=40), x)
    assert sampled.standard_error is not None
    assert float(((sampled.gradient - exact.gradient).abs() / sampled.standard_error).max()) > 4


def test_a_constant_in_the_leaders_reward_changes_no_estimate() -> None:
    """Baselines take it away where transitions and starts depend on x, and episodes do not end by themselves."""
    model = _model(states=5, dim=3, moving=("transition", "initial"), terminating=False, discount=0.6)
    shifted = model.replace(leader_reward=model.part("leader_reward", None) + 100.0)
    x, estimator = random_x(3), FirstOrderEstimator(0.2, env_steps=20_000)
    plain, constant = (_estimate(m, estimator, x).gradient for m in (model, shifted))
    torch.testing.assert_close(plain, constant, rtol=1e-6, atol=1e-8)


def test_common_random_numbers_take_the_noise_away() -> None:
    model = _model(moving=("reward", "leader_reward"))
    x = random_x(model.leader_dim)
    spreads = []
    for common in (True, False):
        estimator = FirstOrderEstimator(0.01, env_steps=20_000, common_random_numbers=common, error_groups=40)
        estimate = _estimate(model, estimator, x)
        assert estimate.standard_error is not None
        spreads.append(float(estimate.standard_error.norm()))
    assert spreads[0] < 0.5 * spreads[1]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_environments_pay_the_share_and_have_the_same_mean(mode: str) -> None:
    x = random_x(21)
    copies: Any = gym.make_vec("bocmdp/FourRooms-v0", 4, autoreset_mode=mode, **_small())
    follower = followers.SoftPolicyIteration(0.2)
    estimator = FirstOrderEstimator(0.5, env_steps=30_000, error_groups=20)
    exact = _estimate(small_rooms(), FirstOrderEstimator(0.5, exact=True), x, follower)
    oracle = followers.TrajectoryOracle(copies, follower, compiled=False)
    estimator.bind(oracle)
    sampled = estimator.estimate(oracle, x, 1, np.random.default_rng(0))
    assert sampled.standard_error is not None
    assert float(((sampled.gradient - exact.gradient).abs() / sampled.standard_error).max()) < 4.5


def _small() -> dict[str, Any]:
    spec = small_rooms().spec
    assert spec is not None
    return dict(spec.kwargs)


def _pole() -> gym.Env[Any, Any]:
    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions

    def earned(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return 1.0 - actions - 0.1 * x[0]

    return LeaderReward(gym.make("CartPole-v1"), bonus, 1, earned, 0.9)


def test_learners_rules_and_agents_will_do() -> None:
    """PPO, DQN, an agent trained in place, and a rule, without a lambda; copies of each answer the two sides."""
    few: dict[str, Any] = {"total_timesteps": 128, "device": "cpu"}
    agents: list[followers.Follower] = [
        followers.SB3Follower("PPO", n_steps=64, batch_size=64, n_epochs=1, **few),
        followers.SB3Follower("DQN", learning_starts=64, buffer_size=200, replay="relabel", **few),
        followers.SB3Follower("PPO", n_envs=2, n_steps=32, batch_size=64, n_epochs=1, make_env=_pole, **few),
        followers.CallableFollower(lambda observation: int(observation[2] > 0)),
    ]
    for follower in agents:
        leader = leaders.FirstOrder(0.1, 0.1, env_steps=100)
        result = leaders.optimize(_pole(), leader, follower, 2, seed=0)
        again = leaders.optimize(_pole(), leader, follower, 2, seed=0)
        assert torch.equal(result.x, again.x)
        assert np.isfinite(result.history["paid_gain"]).all()
        if isinstance(follower, followers.SB3Follower):
            assert result.history["follower_training_steps"][-1] == 2 * 2 * 128


def test_an_entropy_that_nothing_weighs_is_not_asked_for() -> None:
    """SAC has a lambda and a density, no probabilities; here x moves rewards alone."""

    def paid(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions[:, 0]

    pendulum = LeaderReward(gym.make("Pendulum-v1"), paid, 1, lambda x, o, a, c: o[:, 0], 0.9)
    follower = followers.SACFollower(0.2, 120, learning_starts=100, batch_size=16, device="cpu")
    result = leaders.optimize(pendulum, leaders.FirstOrder(0.1, 0.1, env_steps=200), follower, 1)
    assert np.isfinite(result.history["gradient_norm"]).all()


class _Counter(followers.Follower):
    """Answers as its share says, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        env: Any = task.env
        env.reset(seed=0)
        _, reward, *_, info = env.step(1)
        self.seen.append(task.leader_share)
        assert reward == pytest.approx(1.0 + task.leader[0] + task.leader_share * info["leader_reward"])

        class Policy:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> int:
                return 1

        return Policy()

    def state(self) -> dict[str, Any]:
        return {"seen": np.array(self.seen)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"].tolist()


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_environment_pays_each_side_its_share(two_sided: bool) -> None:
    oracle = followers.TrajectoryOracle(_pole(), _Counter())
    estimator = FirstOrderEstimator(0.25, two_sided, env_steps=20)
    estimator.bind(oracle)
    estimator.estimate(oracle, torch.zeros(1, dtype=F64), 0, np.random.default_rng(0))
    sides = [side.oracle.follower.seen for side in estimator._sides]  # type: ignore[attr-defined]
    assert sides == [[0.25], [-0.25 if two_sided else 0.0]]
    assert oracle.env_steps > 0


@pytest.mark.parametrize("weight", [0.1, None])
@pytest.mark.parametrize("two_sided", [True, False])
def test_a_run_continues_bit_for_bit_with_both_followers(tmp_path: Any, weight: Any, two_sided: bool) -> None:
    def run(iterations: int, folder: str, resume: bool = False, stop: int | None = None) -> leaders.Result:
        leader = leaders.FirstOrder(0.5, weight, two_sided=two_sided, env_steps=200)
        follower = followers.SoftQLearning(0.2, iterations=300)
        checkpoints = leaders.Checkpoints(tmp_path / folder, every=1)
        return leaders.optimize(
            small_rooms(),
            leader,
            follower,
            iterations,
            checkpoints=checkpoints,
            resume=resume,
            evaluate_every=1,
            callback=lambda progress: progress.iteration + 1 == stop,
        )

    whole = run(6, "whole")
    run(6, "parts", stop=3)
    resumed = run(6, "parts", resume=True)
    assert torch.equal(whole.x, resumed.x)
    assert np.array_equal(whole.history["paid_gain"], resumed.history["paid_gain"])


def test_the_leader_improves_without_a_lambda_of_its_own() -> None:
    leader = leaders.FirstOrder(0.5, 0.01, exact=True)
    result = leaders.optimize(four_rooms(), leader, followers.SoftPolicyIteration(0.003), 60, seed=0)
    assert result.leader_return is not None
    assert result.leader_return > result.history["leader_return"][0] + 0.05


def test_planners_learners_and_wrappers_agree_on_the_paid_problem() -> None:
    """A planner under a wrapper that shows states otherwise answers r + s rbar; so does its shown table."""
    env = gym.wrappers.FlattenObservation(small_rooms())
    x = random_x(21)
    estimate = _estimate(env, FirstOrderEstimator(0.1, exact=True), x, followers.SoftValueIteration(0.2, tolerance=1e-12))
    direct = _estimate(small_rooms(), FirstOrderEstimator(0.1, exact=True), x, followers.SoftPolicyIteration(0.2))
    torch.testing.assert_close(estimate.gradient, direct.gradient, rtol=1e-6, atol=1e-8)


class _Secret(followers.SoftPolicyIteration):
    exposes_probabilities = False


def test_what_cannot_work_is_refused() -> None:
    planner = followers.SoftPolicyIteration(LAMBDA)
    with pytest.raises(errors.DiscountError, match=r"discounts by 0.9 and the leader by 0.7.*Use HPGD"):
        _estimate(random_model(leader_discount=0.7), FirstOrderEstimator(), random_x(5))
    physics = LeaderParameters(gym.make("CartPole-v1"), ["length"], 0.2, 2.0, lambda x, o, a, c: torch.zeros(len(a)), 0.9)
    with pytest.raises(errors.UnsupportedError, match=r"needs LeaderParameters.model.*ZeroOrder"):
        leaders.optimize(physics, leaders.FirstOrder(), followers.CallableFollower(lambda observation: 0), 1)
    with pytest.raises(errors.UnsupportedError, match="leave exact out"):
        leaders.optimize(_pole(), leaders.FirstOrder(exact=True), followers.CallableFollower(lambda observation: 0), 1)
    with pytest.raises(errors.UnsupportedError, match="has a lambda but exposes no action probabilities"):
        _estimate(_model(), FirstOrderEstimator(), random_x(5), _Secret(LAMBDA))
    with pytest.raises(errors.UnsupportedError, match="ExactGradient for losses"):
        leaders.optimize(_model(), leaders.FirstOrder(), planner, 1, loss=lambda x, policy, context: x.sum())
    flat = _model(moving=("reward",)).replace(leader_reward=np.zeros((3, 1, 1)))
    with pytest.raises(errors.OptionError, match=r'weight="auto" compares the spread'):
        leaders.optimize(flat, leaders.FirstOrder(weight="auto"), planner, 1)
    for wrong in (0.0, -1.0, "automatic", float("nan")):
        with pytest.raises(errors.OptionError, match="weight is"):
            FirstOrderEstimator(wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="before bind"):
        FirstOrderEstimator().estimate(followers.TrajectoryOracle(_model(), planner), random_x(5), 0, np.random.default_rng(0))


def test_copies_that_pay_otherwise_are_refused() -> None:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    def own(makers: Any) -> DummyVecEnv:
        return DummyVecEnv([lambda: Monitor(_pole())] * len(makers))

    follower = followers.SB3Follower("PPO", 64, n_steps=64, batch_size=64, n_epochs=1, vec_env_class=own)
    with pytest.raises(errors.UnsupportedError, match="have vec_env_class call the makers"):
        leaders.optimize(_pole(), leaders.FirstOrder(env_steps=20), follower, 1)


def test_weights_of_the_exact_form_are_public() -> None:
    """With equal policies on both sides the response cancels, and the direct part is left."""
    model = _model()
    x = random_x(5).requires_grad_()
    mdps = model.configure(x)
    arrays, policy = mdps.arrays(0), np.full((model.n_states, model.n_actions), 1 / model.n_actions)
    sides = [(mdps.with_leader_share(s).arrays(0), policy, s, c) for s, c in ((0.1, 5.0), (-0.1, -5.0))]
    weights = first_order_weights(mdps, sides, 0.0)
    uniform = torch.full((model.n_contexts, model.n_states, model.n_actions), 1 / model.n_actions, dtype=F64)
    (direct,) = torch.autograd.grad(mdps.policy_return(uniform)[0], x, retain_graph=True)
    assert arrays.reward.shape == policy.shape
    torch.testing.assert_close(mdps.vjp(weights, 0), direct)
