"""Populations: equilibria against closed forms, hypergradients against differences, and refusals."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

import followers
import leaders
from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP, TabularEnv, check_configurable_env, population
from bocmdp_gym.errors import (
    ConvergenceError,
    DiscountError,
    ModelError,
    OptionError,
    RegularizationError,
    UnknownOptionError,
    UnsupportedError,
)

LAMBDA = 0.5


def random_population(
    seed: int, *, terminating: bool, load_discount: float | None = None, per_class: bool = False, moving: bool = True
) -> PopulationBOCMDP:
    """Three classes whose rewards, transitions, starts and ends all depend on x and loads."""
    rng = np.random.default_rng(seed)
    c, s, a, k, d = 3, 5, 3, 4, 4

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    reward, by_x, by_load = normal(c, s, a), 0.3 * normal(c, s, a, d), 0.3 * normal(c, s, a, k)
    logits, logits_x, logits_load = normal(c, s, a, s), 0.3 * normal(c, s, a, s, d), 0.1 * normal(c, s, a, s, k)
    starts, starts_x, ends, ends_load = normal(c, s), normal(c, s, d), normal(c, s, a), 0.2 * normal(c, s, a, k)
    weights, slopes = normal(k), normal(c, s)

    def objective(x: Tensor, loads: Tensor, values: Tensor) -> Tensor:
        return torch.sin(x).sum() + torch.sin(weights * loads).sum() + 0.1 * (slopes * values**2).sum()

    return PopulationBOCMDP(
        reward=lambda x, loads: reward + by_x @ x - by_load @ torch.tanh(loads),
        transition=(lambda x, loads: torch.softmax(logits + logits_x @ x + logits_load @ torch.tanh(loads), -1))
        if moving
        else torch.softmax(logits, -1),
        initial=(lambda x, loads: torch.softmax(starts + starts_x @ x, -1)) if moving else torch.softmax(starts, -1),
        termination=(lambda x, loads: 0.1 + 0.3 * torch.sigmoid(ends + ends_load @ torch.tanh(loads))) if terminating else None,
        load=np.abs(rng.standard_normal((k, c, s, a) if per_class else (k, s, a))),
        mass=[1.0, 2.0, 0.5],
        objective=objective,
        discount=1.0 if terminating else 0.8,
        load_discount=load_discount,
        leader_dim=d,
    )


CASES = [
    pytest.param(options, id="-".join(f"{k}={v}" for k, v in options.items()))
    for options in (
        {"terminating": True},
        {"terminating": False},
        {"terminating": True, "load_discount": 0.7},
        {"terminating": False, "load_discount": 0.6, "per_class": True},
        {"terminating": True, "moving": False},
    )
]


@pytest.mark.parametrize("options", CASES)
def test_hypergradient_equals_central_differences(options: dict[str, Any]) -> None:
    model = random_population(0, **options)
    x = np.random.default_rng(1).standard_normal(4)
    point = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.leader_return(point, LAMBDA), point)
    steps = 1e-5 * np.eye(4)
    differences = [float(model.leader_return(x + h, LAMBDA) - model.leader_return(x - h, LAMBDA)) / 2e-5 for h in steps]
    assert np.abs(gradient.numpy() - differences).max() < 1e-6 * np.abs(differences).max()


@pytest.mark.parametrize("options", CASES)
def test_loads_are_what_the_policies_produce(options: dict[str, Any]) -> None:
    """The definition itself, by powers of the policies' transition matrices in place of the solver's systems."""
    model = random_population(2, **options)
    x = torch.full((4,), 0.3, dtype=torch.float64)
    found = model.equilibrium(x, LAMBDA)
    mdps = model.problem.configure(torch.cat([x, found.loads]))
    policy, mass = found.policy, torch.tensor(model.mass)
    beta = options.get("load_discount", model.discount)
    visits, now = torch.zeros_like(policy), mass[:, None] * mdps.initial
    for _ in range(400):
        taken = now[..., None] * policy
        visits += taken
        now = torch.einsum("csa,csat->ct", beta * (1.0 - mdps.termination) * taken, mdps.transition.values)
    load = torch.from_numpy(model._structure.load.toarray())
    total = (visits.reshape(-1) if options.get("per_class") else visits.sum(0).reshape(-1)) @ load.T
    torch.testing.assert_close(total, found.loads, rtol=1e-8, atol=0.0)
    optimum = mdps.solve(LAMBDA)
    torch.testing.assert_close(optimum.policy, policy, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(optimum.value, found.value, rtol=1e-9, atol=1e-9)


# torch scripts its own decompositions when forward mode is first used, and warns that it does
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_batches_and_transforms_agree_with_single_points() -> None:
    model = random_population(0, terminating=True)
    x = torch.tensor(np.random.default_rng(1).standard_normal((2, 3, 4)))

    def value(point: Tensor) -> Tensor:
        return model.leader_return(point, LAMBDA)

    every = value(x)
    assert every.shape == (2, 3)
    one = x[1, 2].clone().requires_grad_()
    torch.testing.assert_close(value(one), every[1, 2])
    (gradient,) = torch.autograd.grad(value(one), one)
    batched = x.clone().requires_grad_()
    value(batched).sum().backward()  # type: ignore[no-untyped-call]
    assert batched.grad is not None
    torch.testing.assert_close(batched.grad[1, 2], gradient)
    torch.testing.assert_close(torch.func.grad(value)(x[1, 2]), gradient)
    torch.testing.assert_close(torch.func.jacfwd(value)(x[1, 2]), gradient)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(value))(x[1])[2], gradient)
    torch.testing.assert_close(model.equilibrium(x, LAMBDA).loads[1, 2], model.equilibrium(x[1, 2], LAMBDA).loads)
    with torch.no_grad():
        torch.testing.assert_close(value(one), every[1, 2])
    with pytest.raises(UnsupportedError, match="second derivatives"):
        torch.func.hessian(value)(x[1, 2])
    (once,) = torch.autograd.grad(value(one), one, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives"):
        torch.autograd.grad(once.sum(), one)


# ------------------------------------------------------------------------------------------------------------ closed forms


def two_roads(attraction: float = -1.0, **options: Any) -> PopulationBOCMDP:
    """A single choice between two roads; the first earns ``attraction`` times its load, the second x."""

    def reward(x: Tensor, loads: Tensor) -> Tensor:
        return torch.stack([attraction * loads[0], x[0]]).reshape(1, 1, 2)

    arguments: dict[str, Any] = {
        "reward": reward,
        "load": np.array([[[1.0, 0.0]]]),
        "mass": [2.0],
        "objective": lambda x, loads, values: loads[0] ** 2,
        "transition": np.ones((1, 1, 2, 1)),
        "initial": np.ones((1, 1)),
        "termination": np.ones((1, 1, 2)),
        "discount": 1.0,
        "leader_dim": 1,
        **options,
    }
    return PopulationBOCMDP(**arguments)


@pytest.mark.parametrize(("x", "regularization"), [(-0.7, 1.0), (-0.7, 0.1), (-1.1, 0.001)])
def test_two_roads_share_as_the_logit_says(x: float, regularization: float) -> None:
    def gap(load: float) -> float:
        return load - 2.0 * float(expit(-(x + load) / regularization))

    model = two_roads()
    found = model.equilibrium([x], regularization)
    assert float(found.loads[0]) == pytest.approx(brentq(gap, 0.0, 2.0, xtol=1e-14), rel=1e-9)
    assert found.residual < 1e-9
    assert found.iterations > 0


def test_several_equilibria_are_told() -> None:
    """Followers who like company: at most three fixed points of load = sigma((load - 1) / lambda), by symmetry about 1."""
    model = two_roads(attraction=1.0)
    low = brentq(lambda load: load - 2.0 * float(expit((load - 1.0) / 0.3)), 0.0, 0.9)
    found = sorted(float(one.loads[0]) for one in model.equilibria([1.0], 0.3, starts=6))
    assert found[0] == pytest.approx(low, rel=1e-8)
    assert found[-1] == pytest.approx(2.0 - low, rel=1e-8)
    assert float(model.equilibrium([1.0], 0.3, start=[1.9]).loads[0]) == pytest.approx(2.0 - low, rel=1e-8)
    again = model.equilibrium([1.0], 0.3, start=model.equilibrium([1.0], 0.3, start=[0.1]))
    assert float(again.loads[0]) == pytest.approx(low, rel=1e-8)
    assert again.iterations <= 1
    assert len(two_roads().equilibria([-0.7], 0.3)) == 1


def test_results_depend_on_x_alone() -> None:
    """Equal x give equal numbers, to the bit, whatever was asked for in between; a copy gives them too."""
    model = random_population(3, terminating=True)
    x = np.full(4, 0.2)
    first = model.equilibrium(x, LAMBDA).loads
    model.equilibrium(-x, LAMBDA)
    model.equilibrium(x, 2 * LAMBDA)
    assert torch.equal(model.equilibrium(x, LAMBDA).loads, first)
    assert torch.equal(copy.deepcopy(model).equilibrium(x, LAMBDA).loads, first)


def test_the_last_equilibrium_is_not_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays, values and gradients at one x take one search together."""
    model, searches = random_population(3, terminating=True), []
    search = population.find
    monkeypatch.setattr(population, "find", lambda *given, **options: searches.append(given[1]) or search(*given, **options))
    x = np.full(4, 0.2)
    model.equilibrium(model.example, LAMBDA)
    searches.clear()
    model.at(LAMBDA).configure(torch.from_numpy(x))
    model.leader_return(torch.from_numpy(x).requires_grad_(), LAMBDA).backward()
    assert len(searches) == 1
    model.equilibrium(x, 2 * LAMBDA)
    model.equilibrium(x, LAMBDA, start=np.ones(4))
    assert len(searches) == 4  # two for the other lambda, which begins at `example`


def test_followers_on_a_ring_leave_it_at_small_regularization() -> None:
    """The two cheapest arcs face each other: greedy walks from V = 0 would turn around for ever."""
    n = 12
    cost = torch.ones(1, n, 2, dtype=torch.float64)
    cost[0, 5, 0] = cost[0, 6, 1] = 0.01
    succ = np.array([[(i + 1) % n, (i - 1) % n] for i in range(n)])
    transition = np.zeros((1, n, 2, n))
    for i, j in itertools.product(range(n), range(2)):
        transition[0, i, j, succ[i, j]] = 1.0
    load = np.zeros((2, n, 2))
    load[0, :, 0] = load[1, :, 1] = 1.0
    model = PopulationBOCMDP(
        reward=lambda x, loads: -cost - 0.1 * loads.reshape(1, 1, 2) - x[0],
        load=load,
        mass=[1.0],
        objective=lambda x, loads, values: -loads.sum(),
        transition=transition,
        initial=np.eye(n)[None, 6],
        termination=(succ == 0)[None].astype(float),
        discount=1.0,
        leader_dim=1,
    )
    found = model.equilibrium([0.1], 0.01)
    assert found.residual < 1e-9
    assert float(found.loads.sum()) == pytest.approx(6.0, rel=1e-3)  # six steps to the end, either way


def test_no_equilibrium_is_a_named_error() -> None:
    """A reward that jumps where the load would have to be."""

    def reward(x: Tensor, loads: Tensor) -> Tensor:
        first = torch.where(loads[0] > 1.0, -5.0, 5.0) + 0.0 * loads.sum()
        return torch.stack([first, x[0]]).reshape(1, 1, 2)

    model = two_roads(reward=reward)
    with pytest.raises(
        ConvergenceError, match=r"no equilibrium was found at regularization 0\.5: after \d+ Newton steps .* by \d"
    ):
        model.leader_return([0.0], 0.5, max_iterations=5)


# --------------------------------------------------------------------------------------------------------------- leaders


def test_one_among_the_others_is_a_tabular_problem() -> None:
    model = random_population(0, terminating=True)
    one = model.at(LAMBDA)
    x = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    value = model.leader_return(x, LAMBDA)
    (gradient,) = torch.autograd.grad(value, x)
    returns = one.leader_return(x, LAMBDA, per_context=True)
    torch.testing.assert_close(returns.detach(), value.detach().expand(3))
    (other,) = torch.autograd.grad(returns[1], x)
    torch.testing.assert_close(other, gradient)
    torch.testing.assert_close(one.solve(x, LAMBDA).policy, model.equilibrium(x, LAMBDA).policy, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(one.context_probabilities, model.mass / model.mass.sum())
    check_configurable_env(TabularEnv(one))


@pytest.mark.parametrize("terminating", [True, False])
def test_leaders_take_a_population_like_any_model(terminating: bool) -> None:
    model = random_population(0, terminating=terminating, moving=False)
    follower = followers.SoftPolicyIteration(regularization=LAMBDA)
    x = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.leader_return(x, LAMBDA), x)
    oracle = followers.TrajectoryOracle(model, follower)
    estimators: list[Any] = [leaders.ExactGradient(learning_rate=0.01).estimator]
    estimators.append(leaders.FirstOrder(learning_rate=0.01, exact=True).estimator)
    for estimator in estimators:
        estimator.bind(oracle)
        found = estimator.estimate(oracle, x.detach(), 1, np.random.default_rng(0))
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-8)
    before = float(model.leader_return(x, LAMBDA).detach())
    for leader in (leaders.ExactGradient(learning_rate=0.05), leaders.ZeroOrder(learning_rate=0.01, smoothing=0.01)):
        result = leaders.optimize(model, leader, follower, 8, x0=x.detach(), seed=0)
        assert result.leader_return is not None
        assert result.leader_return > before
        assert result.leader_return == pytest.approx(float(model.leader_return(result.x, LAMBDA)), rel=1e-9)
    seat = leaders.LeaderEnv(model, follower, bounds=(-1.0, 1.0))
    assert seat.value(x.detach().numpy()) == pytest.approx(before, rel=1e-9)
    assert seat.value(x.detach().numpy()) == seat.value(x.detach().numpy())


def test_multistart_takes_a_population() -> None:
    follower = followers.SoftPolicyIteration(regularization=LAMBDA)
    found = leaders.multistart(
        two_roads(), leaders.ExactGradient(learning_rate=0.1), follower, 3, starts=3, rounds=2, scale=0.5, progress=False
    )
    assert found.best.leader_return == max(start.leader_return for start in found.starts)


def test_a_sampling_leader_sees_the_objective_and_its_gradient() -> None:
    """HPGD plays single followers; what it is paid adds up to L, and its reverse pass goes through the equilibrium."""
    model = two_roads()
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(regularization=LAMBDA))
    leader = leaders.HPGD(learning_rate=0.1, env_steps=50)
    leader.estimator.bind(oracle)
    x = torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.leader_return(x, LAMBDA), x)
    found = leader.estimator.estimate(oracle, x.detach(), 0, np.random.default_rng(0))
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-8, atol=0.0)
    assert found.leader_return == pytest.approx(float(model.leader_return(x.detach(), LAMBDA)))


def test_other_lambdas_than_the_others_are_refused() -> None:
    env = TabularEnv(two_roads().at(0.5))
    with pytest.raises(OptionError, match=r"play by regularization 0\.5, and SoftPolicyIteration"):
        followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization=0.1))
    with pytest.raises(RegularizationError, match=r"population\.at\(regularization\)"):
        followers.TrajectoryOracle(two_roads(), followers.CallableFollower(lambda observation: 0))
    with pytest.raises(UnsupportedError, match="those it meets keep theirs"):
        leaders.optimize(
            env,
            leaders.ExactGradient(learning_rate=0.1),
            followers.SoftPolicyIteration(regularization=0.5),
            3,
            regularization_schedule=leaders.Annealing(1.0),
        )
    followers.TrajectoryOracle(env, followers.CallableFollower(lambda observation: 0))  # one that follows no lambda may come


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mass": [-1.0]}, ModelError, r"mass of class 0 is -1\.0; expected finite numbers >= 0"),
        ({"mass": [0.0]}, ModelError, "all masses are 0"),
        ({"mass": "many"}, ModelError, "mass is 'many'"),
        ({"load": np.zeros((1, 1, 2))}, ModelError, "no class produces load 0"),
        ({"load": np.ones((1, 2))}, ModelError, r"load is an array of shape \(1, 2\)"),
        ({"load": np.ones((1, 1, 3))}, ModelError, r"expected \(1, 1, 2\), or \(1, 1, 1, 2\)"),
        ({"load": np.full((1, 1, 2), np.nan)}, ModelError, "not finite"),
        ({"objective": 3}, OptionError, "objective is 3"),
        ({"objective": lambda x, loads, values: loads}, None, ""),
        ({"objective": lambda x, loads, values: values.reshape(-1).repeat(2)}, ModelError, "expected a torch scalar"),
        ({"objective": lambda x, loads, values: torch.tensor(float(loads[0]))}, ModelError, "leaves torch"),
        (
            {"reward": lambda x, loads: torch.tensor(loads.detach().numpy().repeat(2)).reshape(1, 1, 2)},
            ModelError,
            "leaves torch",
        ),
        ({"termination": np.zeros((1, 1, 2)), "reward": np.ones((1, 1, 2))}, DiscountError, "discount is 1"),
        ({"discount": 0.9, "load_discount": 1.0, "termination": np.zeros((1, 1, 2))}, DiscountError, "leader_discount is 1"),
        ({"leader_space": gym.spaces.Discrete(2)}, OptionError, "leader_space"),
        ({"example": [1.0, 2.0]}, ModelError, r"expected a valid x, \(1,\)"),
        (
            {"action_mask": np.ones((1, 2), bool)},
            UnknownOptionError,
            "no option 'action_mask'. In a population all actions exist",
        ),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception] | None, message: str) -> None:
    if error is None:
        two_roads(**options)
        return
    with pytest.raises(error, match=message):
        two_roads(**options)


def test_loads_out_of_reach_are_refused() -> None:
    """A state that nobody comes to, and a class of mass 0."""
    arguments: dict[str, Any] = {
        "reward": np.zeros((1, 2, 1)),
        "transition": np.broadcast_to(np.eye(2).reshape(2, 1, 2), (1, 2, 1, 2)),
        "initial": [[1.0, 0.0]],
        "objective": lambda x, loads, values: loads.sum(),
        "discount": 0.9,
        "leader_dim": 1,
    }
    with pytest.raises(ModelError, match="no class produces load 1"):
        PopulationBOCMDP(load=np.eye(2)[:, :, None], mass=[1.0], **arguments)
    one = np.eye(2)[:, :, None, None]  # load k from class k
    arguments |= {"reward": np.zeros((2, 1, 1)), "transition": np.ones((1, 1, 1, 1)), "initial": [[1.0]]}
    with pytest.raises(ModelError, match="no class produces load 1"):
        PopulationBOCMDP(load=one, mass=[1.0, 0.0], **arguments)
    model = PopulationBOCMDP(load=sparse.csr_array(one.reshape(2, 2)), mass=[1.0, 3.0], **arguments)
    torch.testing.assert_close(model.equilibrium([0.0], 1.0).loads, torch.tensor([10.0, 30.0], dtype=torch.float64))


def test_bad_questions_are_refused() -> None:
    model = two_roads()
    with pytest.raises(OptionError, match=r"expected finite loads of shape \(1,\)"):
        model.equilibrium([0.0], 1.0, start=[1.0, 2.0])
    with pytest.raises(ValueError, match="regularization"):
        model.equilibrium([0.0], -1.0)
    with pytest.raises(ValueError, match="leader parameter has shape"):
        model.leader_return([0.0, 1.0], 1.0)
    with pytest.raises(TypeError, match="tolerance"):
        model.equilibrium([0.0], 1.0, tolerence=1e-3)
    assert isinstance(model.at(1.0), TabularBOCMDP)
    assert "1 classes" in repr(model)


@pytest.mark.parametrize("options", CASES)
def test_visits_of_given_policies_make_their_loads(options: dict[str, Any]) -> None:
    """Those of the equilibrium's policies make the equilibrium; cut at a horizon, they come to the same."""
    model = random_population(2, **options)
    x = np.random.default_rng(0).standard_normal(4)
    found = model.equilibrium(x, LAMBDA)
    visits = model.visits(x, found.loads, found.policy)
    np.testing.assert_allclose(model.loads_of(visits), found.loads, rtol=1e-9)
    np.testing.assert_allclose(model.visits(x, found.loads, found.policy, horizon=300), visits, rtol=1e-9)
    first = model.visits(x, found.loads, found.policy, horizon=1)
    starts = model.problem.configure(np.concatenate([x, found.loads])).initial.detach()
    np.testing.assert_allclose(first.sum(-1), torch.from_numpy(model.mass)[:, None] * starts.expand(3, 5), rtol=1e-12)
    with pytest.raises(OptionError, match=r"policy has shape \(3, 5\)"):
        model.visits(x, found.loads, np.ones((3, 5)))
    with pytest.raises(OptionError, match="loads is"):
        model.visits(x, [1.0], found.policy)
    with pytest.raises(OptionError, match="visits have shape"):
        model.loads_of(visits[0])


def test_one_follower_among_others_who_are_anywhere() -> None:
    model = random_population(0, terminating=True)
    one, x = model.at(LAMBDA), np.random.default_rng(1).standard_normal(4)
    exact = model.equilibrium(x, LAMBDA)
    at, met = one.configure(x), one.met_at(x, exact.loads, exact.value)
    for name in ("reward", "leader_reward", "termination", "initial"):
        torch.testing.assert_close(getattr(met, name), getattr(at, name))
    there = one.met_at(x, exact.loads + 1.0, exact.value)
    policy = exact.policy
    returns = there.policy_return(policy)
    expected = model.objective(torch.from_numpy(x), exact.loads + 1.0, exact.value)
    torch.testing.assert_close(returns, expected.expand(3))
    with pytest.raises(OptionError, match="values have shape"):
        one.met_at(x, exact.loads, exact.value[0])


def test_loads_may_be_negative_where_visits_lower_them() -> None:
    low = random_population(0, terminating=True).problem.leader_space.low
    assert (low[-4:] == 0.0).all()
    model = PopulationBOCMDP(
        reward=lambda x, loads: torch.stack([loads[0] - x[0], loads[0]]).reshape(1, 1, 2),
        load=np.array([[[1.0, -1.0]]]),
        mass=[1.0],
        objective=lambda x, loads, values: loads[0] * x[0],
        transition=np.ones((1, 1, 2, 1)),
        initial=[[1.0]],
        termination=np.ones((1, 1, 2)),
        discount=1.0,
        leader_dim=1,
    )
    found = followers.PopulationOracle(model, followers.SoftPolicyIteration(LAMBDA), rounds=3).play(
        [2.0], np.random.default_rng(0)
    )
    assert found.loads[0] < -0.5
