from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from followers import StepSize, TrajectoryOracle, exploitability, suboptimality
from followers.evaluation import policy_values
from tests.bocmdp_gym.test_population import random_population
from tests.problems import F64, random_model, random_x, small_rooms

LAM = 0.3


def _random_policy(contexts: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).dirichlet(np.ones(3), (contexts, 9))


def test_it_agrees_with_the_definitions() -> None:
    """Every number against torch on dense arrays, per context and averaged by P_xi."""
    model, x = random_model(0), random_x(5)
    pi = torch.from_numpy(_random_policy(3))
    measured = suboptimality(model, pi, x, LAM)
    mdps = model.configure(x)
    solution = mdps.solve(LAM, tolerance=1e-13)
    star = solution.policy.detach()

    def visitation(policy: torch.Tensor) -> torch.Tensor:
        k = mdps.transition.policy_matrix(policy * mdps.continuation)
        d = torch.linalg.solve((torch.eye(9, dtype=F64) - k).mT, mdps.initial)
        return (d / d.sum(-1, keepdim=True)).detach()

    gaps = (mdps.initial * solution.value).sum(-1) - mdps.follower_return(pi, LAM)
    variation = 0.5 * (pi - star).abs().sum(-1)
    entropy = [-(p * p.log()).sum(-1) for p in (pi, star)]
    weights = torch.from_numpy(model.context_probabilities)
    assert measured.delta == pytest.approx(float((pi - star).abs().max()))
    np.testing.assert_allclose(measured.deltas, (pi - star).abs().amax((1, 2)))
    np.testing.assert_allclose(measured.value_gaps, gaps.detach(), rtol=1e-7)
    assert measured.value_gap == pytest.approx(float(weights @ gaps), rel=1e-7)
    assert measured.total_variation == pytest.approx(float(weights @ (visitation(star) * variation).sum(-1)))
    assert measured.entropy == pytest.approx(float(weights @ (visitation(pi) * entropy[0]).sum(-1)))
    assert measured.optimal_entropy == pytest.approx(float(weights @ (visitation(star) * entropy[1]).sum(-1)))
    assert measured.contexts == (0, 1, 2)


def test_the_optimum_has_no_gap() -> None:
    model, x = random_model(1), random_x(5, 1)
    measured = suboptimality(model, model.solve(x, LAM).policy.detach(), x, LAM)
    assert measured.delta < 1e-8
    assert abs(measured.value_gap) < 1e-9
    assert measured.total_variation < 1e-8
    assert measured.entropy == pytest.approx(measured.optimal_entropy)


def test_a_response_is_measured_in_its_own_context() -> None:
    model, x = random_model(2), random_x(5, 2)
    policy: Any = TrajectoryOracle(model, followers.SoftValueIteration(LAM)).respond(x, 2, np.random.default_rng(0))
    measured = suboptimality(model, policy, x, LAM)
    assert measured.contexts == (2,)
    assert measured.delta < 1e-8
    table = _random_policy(3)
    whole = suboptimality(model, table, x, LAM)
    policy.table = table[2]
    part = suboptimality(model, policy, x, LAM)
    assert (part.delta, part.value_gap) == pytest.approx((whole.deltas[2], whole.value_gaps[2]))


def test_hard_policies_can_be_measured() -> None:
    model, x = random_model(3), random_x(5, 3)
    hard = np.zeros((3, 9, 3))
    hard[..., 0] = 1.0
    measured = suboptimality(model, hard, x, 1e-3)
    assert np.isfinite(measured.value_gap)
    assert measured.entropy == 0.0


def test_bad_policies_are_refused() -> None:
    model, x = random_model(0), random_x(5)
    with pytest.raises(errors.ModelError, match=r"shape \(3, 9, 2\); expected \(3, 9, 3\)"):
        suboptimality(model, np.full((3, 9, 2), 0.5), x, LAM)
    bad = _random_policy(3)
    bad[1, 4, 0] += 0.1
    with pytest.raises(errors.ModelError, match="state 4, context 1"):
        suboptimality(model, bad, x, LAM)
    bad[1, 4] = np.nan
    with pytest.raises(errors.ModelError, match="state 4, context 1"):
        suboptimality(model, bad, x, LAM)
    with pytest.raises(errors.RegularizationError):
        suboptimality(model, _random_policy(3), x, 0.0)
    with pytest.raises(errors.LeaderParameterError):
        suboptimality(model, _random_policy(3), np.zeros(2), LAM)
    foreign = followers.TabularPolicy(_random_policy(1)[0], x.numpy(), 7)
    with pytest.raises(errors.ContextError, match="context 7"):
        suboptimality(model, foreign, x, LAM)


def test_a_run_logs_it_where_the_follower_is_not_exact() -> None:
    env = small_rooms()
    follower = followers.SoftQLearning(LAM, iterations=5000)
    result = leaders.optimize(env, leaders.HPGD(env_steps=500), follower, 11, evaluate_every=5)
    delta, gap = result.history["follower_delta"], result.history["follower_value_gap"]
    assert np.isfinite(delta).all()
    assert (delta[[0, 5, 10]] > 0).all()
    assert (gap[[0, 5, 10]] > 0).all()
    for name in ("follower_delta", "follower_value_gap"):
        assert name in leaders.history.COLUMNS
    exact = leaders.optimize(env, leaders.HPGD(env_steps=500), followers.SoftPolicyIteration(LAM), 2)
    alone = leaders.optimize(env, leaders.ExactGradient(), follower, 2)  # never asks the follower
    for run in (exact, alone):
        assert "follower_delta" not in run.history.columns


def test_policies_that_tell_no_probabilities_are_not_measured() -> None:
    class Quiet(followers.Follower):
        """Acts, and exposes no probabilities."""

        regularization = LAM

        def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
            class Policy:
                leader, context = task.leader, task.context

                def act(self, observation: Any, rng: np.random.Generator) -> int:
                    return int(rng.integers(4))

            return Policy()

    result = leaders.optimize(small_rooms(), leaders.HPGD(env_steps=200), Quiet(), 2)
    assert "follower_delta" not in result.history.columns


def test_policies_that_tell_probabilities_one_by_one_are_measured() -> None:
    class Network(followers.Follower):
        """As a learner's: probabilities by observation, no table."""

        regularization = LAM

        def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
            table = task.mdps.solve(LAM).policy[task.context].detach().numpy()

            class Policy:
                leader, context = task.leader, task.context

                def probabilities(self, observation: Any) -> Any:
                    return table[int(observation)]

                def act(self, observation: Any, rng: np.random.Generator) -> int:
                    return int(rng.choice(4, p=self.probabilities(observation)))

            return Policy()

    result = leaders.optimize(small_rooms(), leaders.HPGD(env_steps=200), Network(), 1)
    assert result.history["follower_delta"][0] < 1e-6


@pytest.mark.parametrize(
    "follower",
    [
        followers.SoftValueIteration(0.05),
        followers.SoftQLearning(0.05, iterations=50_000, sampling="pairs", step_size=StepSize.visits(20.0, 100.0)),
        followers.NaturalPolicyGradient(0.05),
    ],
    ids=["soft value iteration", "soft Q-learning", "natural policy gradient"],
)
def test_hpgd_improves_the_leader_with_any_of_them(follower: followers.Follower) -> None:
    """The exact return, under the follower's optimum, starts at 0.24 and ends at 0.95 with an exact follower."""
    result = leaders.optimize(small_rooms(), leaders.HPGD(learning_rate=0.5, env_steps=2000), follower, 150, seed=0)
    assert result.leader_return is not None
    assert result.history["leader_return"][0] < 0.3
    assert result.leader_return > 0.8


def _bridge() -> bocmdp_gym.PopulationBOCMDP:
    """Two classes who choose once: a bridge that fills up, or a ferry."""
    ferry = torch.tensor([3.0, 2.5], dtype=F64)
    return bocmdp_gym.PopulationBOCMDP(
        reward=lambda x, loads: -torch.stack([(1.0 + loads[0] ** 2 + x[0]).expand(2), ferry], -1)[:, None],
        load=np.array([[[1.0, 0.0]]]),
        mass=[2.0, 1.0],
        objective=lambda x, loads, values: x[0] * loads[0],
        transition=np.ones((1, 1, 2, 1)),
        initial=[[1.0]],
        termination=np.ones((1, 1, 2)),
        discount=1.0,
        leader_dim=1,
    )


@pytest.mark.parametrize("regularization", [0.2, None])
def test_exploitability_is_what_the_best_answer_gains(regularization: float | None) -> None:
    """One choice, so that values are sums and the best answer is known; by mass, 2 to 1."""
    model, x = _bridge(), np.array([0.3])
    share = np.array([0.4, 0.7])
    policies = np.stack([share, 1.0 - share], -1)[:, None]
    load = float(model.mass @ share)
    lam = 0.0 if regularization is None else regularization
    rewards = -np.stack([np.full(2, 1.0 + load**2 + 0.3), [3.0, 2.5]], -1)
    entropy = -(policies * np.log(policies)).sum(-1)[:, 0]
    own = (policies[:, 0] * rewards).sum(-1) + lam * entropy
    best = rewards.max(-1) if regularization is None else lam * np.log(np.exp(rewards / lam).sum(-1))
    expected = float(model.mass @ (best - own)) / 3.0
    found = exploitability(model, policies, x, [load], regularization)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0.01


@pytest.mark.parametrize("terminating", [True, False])
def test_exploitability_equals_a_search_of_all_rules(terminating: bool) -> None:
    """Plain gains of several steps: the best of all deterministic policies, class by class."""
    model = random_population(0, terminating=terminating)
    rng = np.random.default_rng(0)
    x, loads = rng.standard_normal(4), rng.random(4)
    policies = rng.dirichlet(np.ones(3), (3, 5))
    mdps = model.problem.configure(np.concatenate([x, loads]))
    expected = 0.0
    for context, weight in enumerate(model.mass / model.mass.sum()):
        arrays = mdps.arrays(context)
        rules = (np.eye(3)[list(actions)] for actions in itertools.product(range(3), repeat=5))
        best = max(float(arrays.initial @ policy_values(arrays, rule, 0.0).value) for rule in rules)
        expected += weight * (best - float(arrays.initial @ policy_values(arrays, policies[context], 0.0).value))
    assert exploitability(model, policies, x, loads, None) == pytest.approx(expected, rel=1e-9)


def test_exploitability_is_0_at_the_equilibrium_and_nowhere_else() -> None:
    model, rng = random_population(1, terminating=True), np.random.default_rng(0)
    x = rng.standard_normal(4)
    exact = model.equilibrium(x, 0.5)
    assert exploitability(model, exact.policy, x, exact.loads, 0.5) < 1e-12
    for distance in (0.01, 0.1, 0.5):
        policies = (1.0 - distance) * exact.policy.numpy() + distance * rng.dirichlet(np.ones(3), (3, 5))
        loads = model.loads_of(model.visits(x, exact.loads, policies))
        assert exploitability(model, policies, x, loads, 0.5) > 1e-4 * distance


def test_exploitability_refuses_what_it_cannot_measure() -> None:
    model = _bridge()
    with pytest.raises(errors.OptionError, match="population"):
        exploitability(random_model(0), np.ones((2, 1, 2)), [0.0], [1.0], 0.2)  # type: ignore[arg-type]
    with pytest.raises(errors.ModelError, match="expected a distribution"):
        exploitability(model, np.ones((2, 1, 2)), [0.0], [1.0], 0.2)
    with pytest.raises(errors.OptionError, match="loads is"):
        exploitability(model, np.full((2, 1, 2), 0.5), [0.0], [1.0, 2.0], 0.2)
    with pytest.raises(errors.LeaderParameterError, match="expected one x"):
        exploitability(model, np.full((2, 1, 2), 0.5), [[0.0]], [1.0], 0.2)
