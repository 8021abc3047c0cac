from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import TabularEnv, errors
from bocmdp_gym.wrappers import LeaderReward
from leaders import Constraint, SampledConstraint
from leaders.sampled_constraints import SampledLagrangian, ended
from tests.problems import random_model, random_x, small_rooms


class _Lever(gym.Env[Any, Any]):
    """One step; pulling (action 1) is worth nothing by itself."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, True, False, {}


def _spending(x: Any, observations: Any, actions: Any, context: Any) -> torch.Tensor:
    return x[0] * torch.as_tensor(actions, dtype=torch.float64)


def _lever() -> LeaderReward:
    """The follower is paid x for pulling, and the leader wants it pulled."""

    def pulled(x: Any, observations: Any, actions: Any, context: Any) -> torch.Tensor:
        return torch.as_tensor(actions, dtype=torch.float64)

    return LeaderReward(_Lever(), _spending, 1, pulled, 0.9)


class _Soft(followers.Follower):
    """Pulls with the probability sigmoid(x): the optimum of its regularised return."""

    regularization = 1.0
    exposes_probabilities = True

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        class Answer(followers.Policy):
            leader, context, exposes_probabilities = task.leader, task.context, True

            def probabilities(self, observation: Any) -> Any:
                pull = float(expit(self.leader[0]))
                return np.array([1.0 - pull, pull])

            def act(self, observation: Any, rng: np.random.Generator) -> int:
                return int(rng.random() < expit(self.leader[0]))

        return Answer()


def test_the_optimum_of_a_constrained_quadratic() -> None:
    """As for exact constraints: F = x - x^2 with x <= 0.2, so x* = 0.2 and the multiplier is 0.6; nothing is random."""
    model = bocmdp_gym.TabularBOCMDP(
        reward=np.zeros((1, 1, 1)),
        leader_reward=lambda x: (x - x**2).reshape(1, 1, 1),
        transition=np.ones((1, 1, 1, 1)),
        initial=np.ones(1),
        discount=0.0,
        leader_dim=1,
    )
    for limit in (
        SampledConstraint("spending", lambda x: x.reshape(1, 1, 1), at_most=0.2),
        SampledConstraint("spending", lambda x: -x.reshape(1, 1, 1), at_least=-0.2, per_context=False),
    ):
        found = leaders.optimize(
            TabularEnv(model, horizon=1),
            leaders.HPGD(learning_rate=0.05, env_steps=1, max_gradient_norm=None),
            followers.SoftPolicyIteration(1.0),
            400,
            constraints=[limit],
            constraint_penalty=5.0,
        )
        assert float(found.x) == pytest.approx(0.2, abs=5e-3)
        assert found.history["multiplier_spending"][-1] == pytest.approx(0.6, abs=1e-2)
        assert found.history["slack_spending"][-1] == pytest.approx(0.0, abs=5e-3)
        assert found.history["sampled_return"][0] == 0.0  # the leader's own


def test_a_participation_level_is_kept_as_by_the_exact_constraint() -> None:
    """Small rooms: penalties cost the follower more than it may lose."""
    env, follower = small_rooms(), followers.SoftPolicyIteration(0.03)
    model: Any = bocmdp_gym.configurable(env).model
    own = model.replace(leader_reward=lambda z: model.part("reward", z))
    options: dict[str, Any] = {"seed": 0, "contexts": "all", "evaluate_every": 150, "constraint_penalty": 5.0}

    def lowest(x: torch.Tensor) -> float:
        return float(own.leader_return(x, 0.03, per_context=True).min())

    exact = leaders.ExactGradient(0.1, optimizer="Adam")
    free = leaders.optimize(env, exact, follower, 150, **options)
    level = 0.8 * lowest(free.x0) + 0.2 * lowest(free.x)
    kept = leaders.optimize(env, exact, follower, 150, constraints=[Constraint("p", "follower", level)], **options)
    leader, limit = (
        leaders.HPGD(0.1, 20_000, optimizer="Adam", schedule="linear"),
        SampledConstraint("p", "follower", at_least=level),
    )
    sampled = leaders.optimize(env, leader, follower, 150, constraints=[limit], **options)
    assert lowest(free.x) < level - 0.06  # it does bind
    assert lowest(kept.x) == pytest.approx(level, abs=0.01)
    assert lowest(sampled.x) == pytest.approx(level, abs=0.02)
    assert sampled.leader_return == pytest.approx(kept.leader_return, abs=0.05)
    assert sampled.leader_return == pytest.approx(float(model.leader_return(sampled.x, 0.03)))  # without the multipliers


@pytest.mark.parametrize(
    "leader",
    [
        leaders.HPGD(0.4, 100, max_gradient_norm=None),
        pytest.param(
            leaders.ZeroOrder(0.2, 0.3, decay=False, two_sided=True, env_steps=100, max_gradient_norm=None),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["critic", "zero-order"],
)
def test_a_spending_limit_beyond_tables(leader: leaders.Leader) -> None:
    """Pulling costs x, and more is always wanted: x sigmoid(x) <= 0.8 binds, and the multiplier is the ratio of derivatives."""
    limit = SampledConstraint("spending", _spending, at_most=0.8)
    options: dict[str, Any] = {"constraints": [limit], "constraint_penalty": 2.0, "seed": 1, "x0": [2.0]}
    found = leaders.optimize(_lever(), leader, _Soft(), 100, **options)
    wanted = brentq(lambda x: x * expit(x) - 0.8, 0.0, 3.0)
    slope = expit(wanted) * expit(-wanted)
    multiplier = slope / (expit(wanted) + wanted * slope)
    assert float(found.history["slack_spending"][-40:].mean()) == pytest.approx(0.0, abs=0.06)
    assert float(found.history["multiplier_spending"][-40:].mean()) == pytest.approx(multiplier, abs=0.1)
    assert float(found.x) == pytest.approx(wanted, abs=0.2)
    first = found.history["slack_error_spending"][0]
    if isinstance(leader, leaders.HPGD):  # an episode is one step
        assert first == pytest.approx(2.0 * (expit(2.0) * expit(-2.0) / 100) ** 0.5, rel=0.5)
        assert found.history["slack_spending"][0] == pytest.approx(0.8 - 2.0 * expit(2.0), abs=4 * first)


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(**options: Any) -> leaders.Result:
        limits = [SampledConstraint("spending", _spending, at_most=0.3), SampledConstraint("pull", _spending, at_least=-1.0)]
        leader = leaders.HPGD(0.1, 40, "critic", error_groups=2)
        return leaders.optimize(_lever(), leader, _Soft(), 30, x0=[1.0], constraints=limits, **options)

    def die(progress: leaders.Progress) -> None:
        if progress.iteration == 25:
            raise KeyboardInterrupt

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoints=leaders.Checkpoints(tmp_path / "kept", every=7), callback=die, callback_every=1)
    resumed = run(checkpoints=leaders.Checkpoints(tmp_path / "kept", every=7), resume=True)
    assert torch.equal(resumed.x, straight.x)
    for name in ("slack_spending", "slack_error_spending", "multiplier_spending", "slack_pull"):
        np.testing.assert_array_equal(resumed.history[name], straight.history[name])


@pytest.mark.parametrize("estimator", [
    leaders.gradients.MonteCarloEstimator(500), leaders.gradients.CriticEstimator(500),
    leaders.gradients.ZeroOrderEstimator(0.3, 3, exact=False, env_steps=200),
], ids=lambda one: type(one).__name__)  # fmt: skip
def test_the_leaders_own_reward_as_an_outcome_has_the_leaders_gradient(estimator: Any) -> None:
    """To the bit: the same steps, weighed in the same way."""
    model = random_model(3, contexts=2, states=4, dim=3, moving=("reward", "leader_reward", "transition"), discount=0.8)
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=30), followers.SoftPolicyIteration(0.5))
    estimator.bind(oracle)
    own = SampledConstraint("own", lambda x: model.part("leader_reward", x), at_least=1e3)  # missed by far: y = -rho g
    lagrangian = SampledLagrangian(oracle, [own], estimator, 2.0)
    before = oracle.env_steps
    found = lagrangian.estimate(oracle, random_x(3), 1, np.random.default_rng(0))
    used = oracle.env_steps - before
    plain = estimator.estimate(oracle, random_x(3), 1, np.random.default_rng(0))
    assert used == plain.env_steps  # no further ones for the constraint
    y = 2.0 * (1e3 - plain.leader_return)
    torch.testing.assert_close(found.gradient, (1.0 + y) * plain.gradient, rtol=1e-9, atol=1e-9)
    record = lagrangian.measure([(1, 1.0)])
    assert record["slack_own"] == pytest.approx(plain.leader_return - 1e3)
    assert record["multiplier_own"] == pytest.approx(y)


def test_what_only_steps_tell() -> None:
    falls = SampledConstraint("falls", steps=ended, at_most=0.4)
    leader = leaders.ZeroOrder(0.05, 0.3, env_steps=20)
    found = leaders.optimize(_lever(), leader, _Soft(), 2, constraints=[falls])
    np.testing.assert_allclose(found.history["slack_falls"], -0.6)  # every episode ends after one step
    model = random_model(1, contexts=1, states=3, dim=2)
    pairs = SampledConstraint("steps", steps=lambda batch: np.ones(batch.n_steps), at_least=0.0)
    on_table = leaders.optimize(TabularEnv(model, horizon=2), leaders.HPGD(0.1, 50), followers.SoftPolicyIteration(0.5), 2,
                                constraints=[pairs])  # fmt: skip
    assert (on_table.history["slack_steps"] > 0.9).all()


def test_what_cannot_work_is_refused() -> None:
    limit = SampledConstraint("spending", _spending, at_most=0.3)

    def run(constraint: Any = limit, leader: Any = None, **options: Any) -> None:
        leaders.optimize(_lever(), leader or leaders.HPGD(0.1, 40), _Soft(), 1, constraints=[constraint], **options)

    with pytest.raises(errors.UnsupportedError, match="cannot weigh the outcome"):
        run(leader=leaders.FirstOrder())
    with pytest.raises(errors.UnsupportedError, match="asks what actions not taken are worth"):
        run(SampledConstraint("falls", steps=ended, at_most=0.1))
    with pytest.raises(errors.UnsupportedError, match=r"no table.*steps=lambda batch: batch\.rewards"):
        run(SampledConstraint("p", "follower", at_most=0.1))
    with pytest.raises(errors.OptionError, match="leave loss and objective out"):
        run(objective=leaders.objectives.Min())
    with pytest.raises(errors.ModelError, match="one finite number for each of the"):
        run(SampledConstraint("p", steps=lambda batch: np.ones(3), at_most=0.1), leaders.ZeroOrder(env_steps=5))
    with pytest.raises(errors.OptionError, match="different ones"):
        leaders.optimize(_lever(), leaders.HPGD(), _Soft(), 1, constraints=[limit, limit])
    for options, message in (
        ({"outcome": "follower"}, "has neither; expected at_most or at_least"),
        ({"outcome": "follower", "at_most": 1, "at_least": 0}, "has at_most and at_least"),
        ({"at_most": 1}, "has neither; expected outcome or steps"),
        ({"outcome": "folower", "at_most": 1}, "expected 'follower'"),
        ({"outcome": [np.nan], "at_most": 1}, "finite numbers"),
        ({"outcome": "follower", "at_most": np.inf}, "at_most of constraint 'c'"),
    ):
        with pytest.raises(errors.OptionError, match=message):
            SampledConstraint("c", **options)
