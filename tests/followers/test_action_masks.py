"""Every follower where some actions do not exist: its policy is that of a model without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bocmdp_gym import TabularBOCMDP, TabularEnv, errors
from followers import (
    CallableFollower,
    Follower,
    LinearProgramming,
    NaturalPolicyGradient,
    SoftPolicyIteration,
    SoftQLearning,
    SoftValueIteration,
    StepSize,
    TabularPolicy,
    TrajectoryOracle,
    VanillaPolicyGradient,
    estimate_regularization,
    suboptimality,
)
from followers._softmax_kernels import draw
from tests.problems import F64, corridor, random_mask, random_model, random_x, restricted_solution

LAMBDA = 1.0
PLAIN = random_model(3, contexts=2, states=4, actions=3, dim=2, discount=0.6)
MASK = random_mask(PLAIN, 2)
MODEL: TabularBOCMDP = PLAIN.replace(action_mask=MASK)
X = random_x(2)
VALUE, POLICY, RETURNS = restricted_solution(PLAIN, MASK, X, LAMBDA)

EXACT: list[Any] = [
    SoftPolicyIteration(LAMBDA),
    SoftValueIteration(LAMBDA, tolerance=1e-10),
    NaturalPolicyGradient(LAMBDA, tolerance=1e-10),
]
LEARNING: list[Any] = [
    SoftQLearning(LAMBDA, iterations=400_000),
    SoftQLearning(LAMBDA, iterations=400_000, sampling="pairs"),
    SoftQLearning(LAMBDA, iterations=400_000, behaviour="uniform"),
    NaturalPolicyGradient(LAMBDA, iterations=300, rollouts=100, step_size=StepSize.harmonic(2.0, 4.0)),
    VanillaPolicyGradient(LAMBDA, iterations=100_000, step_size=StepSize.harmonic(20.0, 400.0)),
]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("follower", "error"), [*((f, 1e-8) for f in EXACT), *((f, 0.05) for f in LEARNING)], ids=repr)
def test_policies_are_those_of_the_actions_that_exist(follower: Any, error: float) -> None:
    oracle = TrajectoryOracle(MODEL, follower)
    for context in range(2):
        policy = oracle.respond(X, context, rng())
        assert policy.table is not None
        np.testing.assert_allclose(policy.table, POLICY[context], atol=error)
        assert (policy.table[~MASK[context]] == 0.0).all()
        again = oracle.respond(X, context, rng())  # from where it ended
        np.testing.assert_allclose(again.table, POLICY[context], atol=error)  # type: ignore[arg-type]
    state = follower.state()
    follower.reset()
    follower.load_state(state)
    assert (oracle.respond(X, 0, rng()).table[~MASK[0]] == 0.0).all()  # type: ignore[index]


def test_the_linear_program_takes_actions_that_exist() -> None:
    """The best of the policies that always do the same, found by trying all."""
    policy = TrajectoryOracle(MODEL, LinearProgramming()).respond(X, 1, rng())
    arrays, best = MODEL.configure(X).arrays(1), -np.inf
    for choice in np.ndindex(*(3,) * 4):
        if MASK[1][np.arange(4), choice].all():
            pi = np.eye(3)[list(choice)]
            system = arrays.solver.factor(pi * arrays.continuation, arrays.stored_probabilities)
            value = system.solve((pi * arrays.reward).sum(-1))
            if value.sum() > best:
                best, found = float(value.sum()), pi
    np.testing.assert_array_equal(policy.table, found)


def test_rounding_draws_nothing_that_does_not_exist() -> None:
    weight = np.array([[0.1, 0.2, 0.0, 0.0]])
    assert draw(weight, 0, 0.1 + 0.2 + 1e-9) == 1
    assert [draw(weight, 0, u) for u in (0.0, 0.05, 0.1, 0.29)] == [0, 0, 1, 1]
    assert draw(np.array([[0.0, 1.0]]), 0, 0.0) == 1


def test_sampled_returns_are_the_exact_ones() -> None:
    """Within 4 standard errors, in the compiled sampler, in the environment and in copies; and nothing missing is done."""
    model = corridor()
    compiled = TrajectoryOracle(TabularEnv(model, horizon=200), SoftPolicyIteration(0.2))
    played = TrajectoryOracle(TabularEnv(model, horizon=200), SoftPolicyIteration(0.2), compiled=False)
    x = np.full(5, 0.1)
    exact = model.leader_return(x, 0.2, per_context=True)
    for context in range(2):
        policy = compiled.respond(x, context, rng())
        for oracle, steps in ((compiled, 40_000), (played, 1_000)):
            batch = oracle.sample(policy, steps, rng())
            assert model.mask.of(context)[batch.states, batch.actions].all()  # type: ignore[union-attr]
            returns = batch.discounted_returns(model.leader_discount, leader=True)
            error = returns.std() / len(returns) ** 0.5
            assert abs(returns.mean() - float(exact[context])) < 4.0 * error
        paired = compiled.sample(policy, 1_000, rng(), paired=True)
        assert model.mask.of(context)[paired.states, paired.actions].all()  # type: ignore[union-attr]


@pytest.mark.parametrize("compiled", [True, False])
def test_what_does_not_exist_is_not_sampled(compiled: bool) -> None:
    oracle = TrajectoryOracle(TabularEnv(corridor()), SoftPolicyIteration(0.2), compiled=compiled)
    policy = oracle.respond(np.zeros(5), 0, rng())
    with pytest.raises(errors.StateError, match=r"\(state 0, action 0\): the action does not exist there; expected \[1 2\]"):
        oracle.sample(policy, 10, rng(), start=[(0, 0)])
    assert oracle.sample(policy, 10, rng(), start=[(0, -1), (0, 2)]).n_episodes >= 1
    uniform = TabularPolicy(np.full((5, 3), 1 / 3), np.zeros(5), 0)
    with pytest.raises(errors.ActionError, match="action 0"):
        oracle.sample(uniform, 50, rng())


def test_policies_of_users_are_checked_where_they_are_weighed() -> None:
    model = corridor()
    uniform = torch.full((2, 5, 3), 1 / 3, dtype=F64)
    mdps = model.configure(np.zeros(5))
    for call in (
        lambda: mdps.policy_return(uniform),
        lambda: mdps.follower_return(uniform, 0.1),
        lambda: mdps.discounted_sum(uniform, uniform),
        lambda: suboptimality(model, uniform, np.zeros(5), regularization=0.1),
    ):
        with pytest.raises(errors.ActionError, match=r"the policy takes action 0 in state 0.* with probability 0\.333"):
            call()


def test_callables_may_act_by_what_exists() -> None:
    def right(observation: int) -> int:
        return 2 if observation < 4 else 1

    env = TabularEnv(corridor(), horizon=20)
    oracle = TrajectoryOracle(env, CallableFollower(right, estimate_steps=200))
    policy = oracle.respond(np.zeros(5), 0, rng())
    assert oracle.sample(policy, 100, rng()).actions.max() == 2
    forward = TrajectoryOracle(env, CallableFollower(lambda observation: 2))
    with pytest.raises(errors.ActionError, match=r"action 2 does not exist in state 4; expected one of \[0, 1\]"):
        forward.sample(forward.respond(np.zeros(5), 0, rng()), 200, rng())


def test_lambda_is_read_from_a_policy_of_the_actions_that_exist() -> None:
    oracle = TrajectoryOracle(MODEL, SoftPolicyIteration(0.5))
    policy = oracle.respond(X, 0, rng())
    assert estimate_regularization(oracle, policy).regularization == pytest.approx(0.5, rel=1e-6)
    sampled = estimate_regularization(oracle, policy, env_steps=20_000, rng=rng())
    assert abs(sampled.regularization - 0.5) < 4.0 * sampled.standard_error


def test_behaviour_takes_actions_that_exist() -> None:
    behaviour = np.full((4, 3), 1 / 3)
    follower: Follower = SoftQLearning(LAMBDA, iterations=100, behaviour=behaviour)
    with pytest.raises(errors.ActionError, match="does not exist there"):
        TrajectoryOracle(MODEL, follower).respond(X, 0, rng())
