from __future__ import annotations

import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import TabularEnv, errors
from leaders import Constraint
from leaders.constraints import AugmentedLagrangian
from tests.problems import four_rooms, random_model, random_x


def _follower_values(env: object, x: torch.Tensor, regularization: float) -> np.ndarray:
    """The follower's expected discounted reward per context."""
    model = bocmdp_gym.configurable(env).model  # type: ignore[arg-type]
    policy = model.solve(x, regularization).policy
    own = model.replace(leader_reward=lambda z: model.part("reward", z), leader_discount=model.discount)
    return own.configure(x).policy_return(policy).numpy()


@pytest.mark.parametrize(
    ("leader", "tolerance"),
    [(leaders.ExactGradient(learning_rate=0.03), 0.02), (leaders.HPGD(learning_rate=0.03, env_steps=3000), 0.1)],
)
def test_a_participation_level_is_kept(leader: leaders.Leader, tolerance: float) -> None:
    model = random_model(1, moving=("reward", "leader_reward"), leader_discount=None)
    env, follower = TabularEnv(model), followers.SoftPolicyIteration(0.5)
    free = leaders.optimize(env, leader, follower, 400, seed=0, contexts="all")
    values = _follower_values(env, free.x, 0.5)
    level = float(values.min()) + 0.5
    constraint = Constraint("participation", "follower", level)
    kept = leaders.optimize(env, leader, follower, 800, seed=0, contexts="all", constraints=[constraint])
    assert values.min() < level - 0.4
    assert _follower_values(env, kept.x, 0.5).min() > level - tolerance
    assert kept.leader_return == pytest.approx(float(model.leader_return(kept.x, 0.5)))  # without the multipliers
    assert kept.history["slack_participation"][0] == pytest.approx(_follower_values(env, kept.x0, 0.5).min() - level)


def test_the_optimum_of_a_constrained_quadratic() -> None:
    """One state, one action: F = x - x^2 with x <= 0.2, so x* = 0.2 and the multiplier is F'(0.2) = 0.6 (discount 0)."""
    model = bocmdp_gym.TabularBOCMDP(
        reward=np.zeros((1, 1, 1)),
        leader_reward=lambda x: (x - x**2).reshape(1, 1, 1),
        transition=np.ones((1, 1, 1, 1)),
        initial=np.ones(1),
        discount=0.0,
        leader_dim=1,
    )
    result = leaders.optimize(
        TabularEnv(model),
        leaders.ExactGradient(learning_rate=0.02, max_gradient_norm=None),
        followers.SoftPolicyIteration(1.0),
        3000,
        constraints=[Constraint("spending", lambda x: -x.reshape(1, 1, 1), -0.2, per_context=False)],
    )
    assert float(result.x) == pytest.approx(0.2, abs=1e-6)
    assert result.history["multiplier_spending"][-1] == pytest.approx(0.6, abs=1e-5)
    assert result.history["slack_spending"][-1] == pytest.approx(0.0, abs=1e-6)


def test_a_slack_constraint_changes_nothing() -> None:
    model, follower = random_model(1), followers.SoftPolicyIteration(0.5)
    leader = leaders.ExactGradient(learning_rate=0.05)
    plain = leaders.optimize(model, leader, follower, 20, seed=3)
    slack = leaders.optimize(TabularEnv(model), leader, follower, 20, seed=3, constraints=[Constraint("p", "follower", -1e6)])
    torch.testing.assert_close(plain.x, slack.x, rtol=1e-12, atol=1e-12)


def test_bad_constraints_are_refused() -> None:
    env, follower, leader = four_rooms(), followers.SoftPolicyIteration(0.01), leaders.ExactGradient()
    with pytest.raises(errors.OptionError, match="unknown outcome"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", "folower", 0.0)])
    with pytest.raises(errors.OptionError, match="different ones"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", "follower", 0.0)] * 2)
    with pytest.raises(errors.ModelError, match="leader_reward has shape"):
        leaders.optimize(env, leader, follower, 1, constraints=[Constraint("p", np.zeros((3, 3)), 0.0)])
    with pytest.raises(errors.OptionError, match="write them into the loss"):
        leaders.optimize(env, leader, follower, 1, loss=lambda x, p, c: x.sum(), constraints=[Constraint("p", "follower", 0.0)])


def test_the_followers_own_outcome_has_the_followers_discount() -> None:
    """One state, one action, reward 1 for ever at discount 1/2: worth 2, so a level of 3 is missed by 1; not met by 7."""
    model = bocmdp_gym.TabularBOCMDP(
        reward=np.ones((1, 1, 1)),
        leader_reward=lambda x: (-(x**2)).reshape(1, 1, 1),
        transition=np.ones((1, 1, 1, 1)),
        initial=np.ones(1),
        discount=0.5,
        leader_discount=0.9,
        leader_dim=1,
    )
    x = torch.zeros(1, dtype=torch.float64)
    lagrangian = AugmentedLagrangian(
        model, [Constraint("own", "follower", 3.0), Constraint("array", np.ones((1, 1, 1)), 3.0)], 1.0
    )
    record = lagrangian.measure(x)
    assert record["slack_own"] == pytest.approx(-1.0)
    assert record["multiplier_own"] == pytest.approx(50.0)
    assert record["slack_array"] == pytest.approx(7.0)  # an array is the leader's outcome


@pytest.mark.parametrize("discounts", [(0.7, 0.9), (0.9, 0.6), (0.8, None)])
@pytest.mark.parametrize("moving", [("reward", "leader_reward"), ("reward", "transition", "initial", "termination")])
def test_slack_and_gradient_agree_with_the_definition(discounts: tuple[float, float | None], moving: tuple[str, ...]) -> None:
    discount, leader_discount = discounts
    model = random_model(2, states=4, dim=3, moving=moving, discount=discount, leader_discount=leader_discount)
    x, regularization, level = random_x(3), 0.5, 1e3  # missed everywhere: y = -rho g in every context
    lagrangian = AugmentedLagrangian(model, [Constraint("own", "follower", level)], regularization, penalty=2.0)

    def outcome(x: torch.Tensor) -> torch.Tensor:
        """Simulated by hand: rewards of 400 steps under the follower's optimum, at its own discount."""
        policy = model.solve(x, regularization).policy
        mdps = model.configure(x)
        values = []
        for context in range(model.n_contexts):
            arrays = mdps.arrays(context)
            kernel = np.zeros((4, 3, 4))
            for s, a in np.ndindex(4, 3):
                np.add.at(kernel[s, a], arrays.successors[s, a], arrays.probabilities[s, a])
            pi = policy[context].detach().numpy()
            stay = np.einsum("sa,sat->st", pi * (1.0 - arrays.termination), kernel)
            here, total = arrays.initial.copy(), 0.0
            for t in range(400):
                total += discount**t * float(here @ (pi * arrays.reward).sum(-1))
                here = here @ stay
            values.append(total)
        return torch.tensor(values, dtype=torch.float64)

    record = lagrangian.measure(x)
    assert record["slack_own"] == pytest.approx(float(outcome(x).min()) - level, rel=1e-9)
    for context in range(model.n_contexts):
        y = -2.0 * (float(outcome(x)[context]) - level)
        step, numeric = 1e-5, []
        for i in range(3):
            d = torch.zeros(3, dtype=torch.float64)
            d[i] = step
            numeric.append(float(outcome(x + d)[context] - outcome(x - d)[context]) / (2 * step))
        np.testing.assert_allclose(lagrangian.gradient(context).numpy() / y, numeric, rtol=1e-5, atol=1e-7)
