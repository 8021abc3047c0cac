"""Values that no sensible user means, and values that they do mean in an unusual type: refused by name, or taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import sparse

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import FactoredTransitions, SuccessorTransitions, TabularBOCMDP, errors
from bocmdp_gym.envs import FourRooms, MetaRL
from followers import SoftPolicyIteration, StepSize
from leaders import Checkpoints, Constraint, LeaderEnv
from leaders.gradients import ExactEstimator, MultilevelEstimator
from leaders.updates import project_to_simplex
from tests.problems import random_model, random_x, small_model

NAN, INF = float("nan"), float("inf")
DENSE = np.full((1, 2, 2, 2), 0.5)


def model(**changes: Any) -> TabularBOCMDP:
    """Two states, two actions; rewards depend on x."""
    arguments: dict[str, Any] = {
        "reward": lambda x: x.reshape(1, 2, 1) * torch.tensor([[[1.0, 2.0]]], dtype=torch.float64),
        "leader_reward": np.ones((1, 2, 2)),
        "transition": DENSE,
        "initial": [0.5, 0.5],
        "leader_dim": 2,
        "discount": 0.9,
    }
    return TabularBOCMDP(**{**arguments, **changes})


def successors(indices: Any) -> SuccessorTransitions:
    return SuccessorTransitions(indices, torch.full((1, 2, 2, 1), 1.0, dtype=torch.float64))


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Constraint("c", "follower", NAN), errors.OptionError, "at_least of constraint 'c' is nan"),
    (lambda: Constraint("c", "follower", INF), errors.OptionError, "at_least of constraint 'c' is inf"),
    (lambda: Constraint("", "follower", 0.0), errors.OptionError, "name is ''"),
    (lambda: Constraint("c", "folower", 0.0), errors.OptionError, "Did you mean 'follower'"),
    (lambda: Constraint("c", np.array([NAN]), 0.0), errors.OptionError, "finite numbers"),
    (lambda: Constraint("c", "follower", 0.0, per_contxt=True), errors.UnknownOptionError, "per_context"),  # type: ignore[call-arg]
    (lambda: model().solve([0, 0], 0.1, tolerance=NAN), errors.OptionError, "tolerance is nan"),
    (lambda: model().solve([0, 0], 0.1, tolerance=-1), errors.OptionError, "tolerance is -1"),
    (lambda: model().solve([0, 0], 0.1, max_iterations=1.5), errors.OptionError, "max_iterations is 1.5"),  # type: ignore[arg-type]
    (lambda: model().leader_return([0, 0], 0.1, max_iterations=0), errors.OptionError, "max_iterations is 0"),
    (lambda: model().solve([0, 0], 0.1, initial_value=torch.zeros(3)), errors.OptionError, r"shape \(3,\); expected \(1, 2\)"),
    (lambda: model().solve([0, 0], 0.1, initial_value=torch.tensor([NAN, 0])), errors.OptionError, "expected finite numbers"),
    (lambda: SoftPolicyIteration(0.1, tolerance=NAN), errors.OptionError, "tolerance is nan"),
    (lambda: ExactEstimator(tolerance=NAN), errors.OptionError, "tolerance is nan"),
    (lambda: ExactEstimator(tolerance=-1.0), errors.OptionError, "tolerance is -1"),
    (lambda: ExactEstimator(max_iterations=0), errors.OptionError, "max_iterations is 0"),
    (lambda: StepSize(-1, None, False), errors.OptionError, "scale, h, is -1"),
    (lambda: StepSize(NAN, None, False), errors.OptionError, "scale, h, is nan"),
    (lambda: StepSize(1.0, 0.0, False), errors.OptionError, "offset, n0, is 0.0"),
    (lambda: StepSize(1.0, None, 2), errors.OptionError, "per_pair is 2"),  # type: ignore[arg-type]
    (lambda: MultilevelEstimator(63), errors.OptionError, r"levels is 63; expected an integer in 2\.\.62"),
    (lambda: MetaRL(goals=np.array(3)), errors.OptionError, r"goals is array\(3\)"),
    (lambda: MetaRL(goals=np.ma.masked_array([1, 2], [True, False])), errors.LayoutError, r"goals\[0\] is"),
    (lambda: FourRooms(goals=np.array(3)), errors.OptionError, r"goals is array\(3\)"),
    (lambda: LeaderEnv(model(), SoftPolicyIteration(0.1), bounds=np.array(3)), errors.OptionError, r"bounds is array\(3\)"),
    (lambda: Checkpoints("f", every=1.5), errors.OptionError, "is 1.5"),  # type: ignore[arg-type]
    (lambda: gym.make_vec("bocmdp/FourRooms-v0", num_envs=2.5), errors.OptionError, "num_envs is 2.5"),  # type: ignore[arg-type]
    (lambda: model().solve(np.ma.masked_array([1.0, 2.0], [True, False]), 0.1), errors.LeaderParameterError, "real numbers"),
    (lambda: model().solve(np.array([1 + 2j, 0]), 0.1), errors.LeaderParameterError, "real numbers"),
    (lambda: model().solve(torch.tensor([1 + 2j, 0]), 0.1), errors.LeaderParameterError, "real numbers"),
    (lambda: model().solve(["1", "2"], 0.1), errors.LeaderParameterError, "real numbers"),
    (lambda: bocmdp_gym.TabularEnv(model()).set_leader(np.array([1 + 2j, 0])), errors.LeaderParameterError, "real numbers"),
    (
        lambda: bocmdp_gym.TabularEnv(model()).set_leader(np.ma.masked_array([1.0, 2.0], [True, False])),
        errors.LeaderParameterError,
        "real numbers",
    ),
    (lambda: model().leader_return([1e307, 1e307], 0.1), errors.ModelError, "rewards reach 2e[+]307"),
    (lambda: model(transition=np.zeros((1, 2, 0, 2))), errors.ModelError, "0 actions"),
    (lambda: model(transition=np.zeros((1, 0, 2, 0))), errors.ModelError, "0 states"),
    (lambda: model(transition=np.zeros((0, 2, 2, 2))), errors.ModelError, "0 contexts"),
    (lambda: model(context_probabilities=[]), errors.BOCMDPError, "context"),
    (lambda: model(transition=DENSE[None]), errors.ModelError, "5 axes"),
    (lambda: model(leader_dim=0), errors.OptionError, "leader_dim is 0"),
    (lambda: model(leader_dim=1.5), errors.OptionError, "leader_dim is 1.5"),
    (lambda: model(reward=np.array([[[1 + 2j]]])), errors.ModelError, "expected an array of real numbers"),
    (lambda: model(reward="a"), errors.ModelError, "expected an array of real numbers"),
    (lambda: model(reward=None), errors.ModelError, "expected an array of real numbers"),
    (lambda: model(reward=np.ma.masked_array(np.ones((1, 2, 2)), np.ones((1, 2, 2)))), errors.ModelError, "masked"),
    (lambda: successors(np.full((2, 2, 1), 2**32 + 1)), errors.ModelError, "reaches from 4294967297"),
    (lambda: successors(np.full((2, 2, 1), 1.9)), errors.ModelError, "one of them 1.9; expected integers"),
    (lambda: successors(np.full((2, 2, 1), -1)), errors.ModelError, "reaches from -1"),
    (lambda: successors(np.full((2, 2, 1), "a")), errors.ModelError, "expected integers"),
    (lambda: FactoredTransitions(torch.full((2, 2, 2), 0.5), [0, 0.5]), errors.ModelError, "expected integers"),
    (lambda: project_to_simplex(torch.tensor([NAN, 1.0])), errors.LeaderParameterError, "finite numbers"),
    (lambda: project_to_simplex(torch.tensor([0.5, 1.0]), NAN), errors.LeaderParameterError, "total nan"),
    (lambda: project_to_simplex(torch.zeros(2, 2)), errors.LeaderParameterError, "vector"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_nobody_means_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_unusual_types_are_taken_where_they_are_meant() -> None:
    assert Checkpoints("f", every=1e4).every == 10_000  # type: ignore[arg-type]
    assert leaders.HPGD(env_steps=1e4).estimator.env_steps == 10_000  # type: ignore[attr-defined]
    assert leaders.HPGD(env_steps=np.int64(3)).estimator.env_steps == 3  # type: ignore[attr-defined]
    env = bocmdp_gym.TabularEnv(random_model(0, contexts=2), horizon=50.0)  # type: ignore[arg-type]
    assert env.horizon == 50
    assert isinstance(env.horizon, int)
    for context in (np.int64(1), np.int32(1), np.array(1), torch.tensor(1), 1.0):
        env.set_context(context)
        assert env.reset()[1]["context"] == 1
    for context in (np.array(0.5), True, "1", [1], NAN, 1 + 0j, object()):
        with pytest.raises(errors.ContextError):
            env.set_context(context)
    third = np.full(3, 1 / 3, dtype=np.float32)
    assert abs(float(third.astype(np.float64).sum()) - 1.0) > 1e-8
    for p in (third, torch.from_numpy(third)):
        assert random_model(0, contexts=3).replace(context_probabilities=p).context_probabilities.sum() == pytest.approx(
            1, abs=1e-15
        )
    assert successors(np.ones((2, 2, 1))).successors().dtype == np.int32


def test_messages_have_enough_digits() -> None:
    space = gym.spaces.Box(0.0, 0.1, (2,), np.float64)
    above = np.nextafter(0.1, 1.0)
    with pytest.raises(errors.LeaderParameterError, match=rf"is {above} at entry 1, outside \[0.0, 0.1\]"):
        bocmdp_gym.TabularEnv(model(leader_space=space)).set_leader([0.0, above])
    with pytest.raises(errors.ContextError, match=r"it sums to 1\.0000001"):
        model(context_probabilities=[1.0000001])


def test_sparse_rewards_are_those_of_every_context() -> None:
    dense = np.array([[0.0, 2.0], [0.5, 0.0]])
    kept = {"reward": lambda x: torch.tensor(dense)[None] * x[0], "leader_reward": sparse.csr_array(dense)}
    mixed = model(**kept, initial=sparse.csr_matrix([[0.25, 0.75]]), context_probabilities=[0.5, 0.5])
    plain = model(**kept | {"leader_reward": dense[None]}, initial=[0.25, 0.75], context_probabilities=[0.5, 0.5])
    assert mixed.leader_return([1.0, 0.0], 0.1) == plain.leader_return([1.0, 0.0], 0.1)
    torch_sparse = model(leader_reward=torch.tensor(dense)[None].to_sparse())
    assert torch_sparse.leader_return([1.0, 0.0], 0.1) == model(leader_reward=dense[None]).leader_return([1.0, 0.0], 0.1)


def test_initial_values_that_broadcast_are_taken() -> None:
    one = small_model()
    x = random_x(one.leader_dim)
    value = one.solve(x, 0.5).value
    for start in (value, value[:1] * 0, value[0] + 1, value.numpy(), value.tolist()):
        torch.testing.assert_close(one.solve(x, 0.5, initial_value=start).value, value)  # type: ignore[arg-type]


def test_leaders_of_a_model_that_does_not_depend_on_x_stay_where_they_are() -> None:
    constant = model(reward=np.ones((1, 2, 2)))
    for leader in (leaders.AMD(sweeps=2), leaders.ExactGradient(), leaders.HPGD(env_steps=50)):
        result = leaders.optimize(constant, leader, followers.SoftPolicyIteration(0.1), 3)
        assert torch.equal(result.x, result.x0)
