from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr
from torch import Tensor

import followers
import leaders
from bocmdp_gym import TabularBOCMDP, TabularEnv, Trajectories, errors
from bocmdp_gym.envs import TaxDesign
from bocmdp_gym.kernels.random import uniform
from leaders.checkpoints import Checkpoints
from leaders.gradients import Estimate, ExactEstimator, TDEstimator
from leaders.gradients._td_batch import TDBatch
from leaders.gradients._td_kernels import learn, trace_weights
from leaders.gradients._td_networks import NetworkTD, _Critic
from leaders.gradients.exact import leader_values
from leaders.gradients.td import Tables
from tests.problems import four_rooms, random_model, random_x, relative_error, small_rooms

REWARDS = ("reward", "leader_reward")
EVERYTHING = (*REWARDS, "transition", "initial", "termination")
LAMBDA = 1.0


def _model(moving: tuple[str, ...] = EVERYTHING, seed: int = 0, **options: Any) -> TabularBOCMDP:
    defaults: dict[str, Any] = {"states": 5, "dim": 4, "discount": 0.7, "leader_discount": 0.8, "moving": moving}
    return random_model(seed, **(defaults | options))


def _oracle(problem: Any, regularization: float = LAMBDA) -> followers.TrajectoryOracle:
    return followers.TrajectoryOracle(problem, followers.SoftPolicyIteration(regularization))


def _exact(oracle: followers.TrajectoryOracle, x: Tensor, context: int) -> Tensor:
    exact = ExactEstimator()
    exact.bind(oracle)
    return exact.estimate(oracle, x, context, np.random.default_rng(0)).gradient


def _true_tables(model: TabularBOCMDP, x: Tensor, context: int) -> Tables:
    """The follower's Qbar and V at x."""
    solution = model.solve(x, LAMBDA)
    arrays = model.configure(x).arrays(context)
    q = leader_values(arrays, solution.policy[context].numpy()).q
    return Tables(q, solution.value[context].numpy().copy(), np.ones(model.n_states, dtype=np.bool_), np.zeros(2))


def _deviation(estimates: list[Estimate], truth: Tensor) -> tuple[float, float]:
    """Largest deviation of the mean in standard errors, and the largest standard error relative to the truth."""
    draws = torch.stack([estimate.gradient for estimate in estimates])
    error = draws.std(0) / len(draws) ** 0.5
    rounding = 1e-10 * float(truth.abs().max())  # where mu alone depends on x there is no noise
    return float(((draws.mean(0) - truth).abs() / (error + rounding)).max()), float(error.max() / truth.abs().max())


# ----------------------------------------------------------------------------------------------------------- the mean


@pytest.mark.parametrize(
    "model",
    [
        *(_model((part,)) for part in EVERYTHING),
        _model(),
        _model(successors=3),
        _model(discount=0.8, leader_discount=0.6),
        _model(seed=3, leader_discount=None, terminating=False),
    ],
    ids=[*EVERYTHING, "everything", "successors", "other discounts", "endless"],
)
def test_the_mean_is_exact_where_the_tables_are(model: TabularBOCMDP) -> None:
    horizon = (
        None if bool(model.part("termination", torch.from_numpy(model.example)).any()) else 60
    )  # what is then cut off is 0.8^60
    oracle, x, context, rng = _oracle(TabularEnv(model, horizon=horizon)), random_x(4), 1, np.random.default_rng(0)
    estimator = TDEstimator(6000, td_rate=1e-15)
    estimator.bind(oracle)
    estimator._tables[context] = _true_tables(model, x, context)
    estimates = [estimator.estimate(oracle, x, context, rng) for _ in range(120)]
    deviation, error = _deviation(estimates, _exact(oracle, x, context))
    assert deviation < 4.0
    assert error < 0.02
    assert estimates[0].metrics["td_error"] > 0.0


@pytest.mark.parametrize("horizon", [None, 50])
def test_few_steps_are_unbiased_too(horizon: int | None) -> None:
    """One episode or a few per estimate: nothing is averaged by state, and long episodes weigh no more than short ones."""
    model, context = _model(terminating=horizon is None, discount=0.5, leader_discount=0.6), 1
    oracle, x, rng = _oracle(TabularEnv(model, horizon=horizon)), random_x(4), np.random.default_rng(0)
    estimator = TDEstimator(10, td_rate=1e-15)
    estimator.bind(oracle)
    estimator._tables[context] = _true_tables(model, x, context)
    estimates = [estimator.estimate(oracle, x, context, rng) for _ in range(8000)]
    deviation, error = _deviation(estimates, _exact(oracle, x, context))
    assert deviation < 4.0
    assert error < 0.05


@pytest.mark.parametrize("horizon", [None, 6])
def test_tables_become_the_true_values(horizon: int | None) -> None:
    """A time limit, at which values continue, leaves no bias."""
    model, context = _model(terminating=horizon is None, discount=0.8, leader_discount=0.9), 1
    oracle, x, rng = _oracle(TabularEnv(model, horizon=horizon)), random_x(4), np.random.default_rng(0)
    truth = _true_tables(model, x, context)
    distances = []
    for rate in (0.1, 0.003):
        estimator = TDEstimator(20_000, td_rate=rate)
        estimator.bind(oracle)
        for _ in range(40):
            estimator.estimate(oracle, x, context, rng)
        found = estimator._tables[context]
        distances.append([float(np.linalg.norm(f - t) / np.linalg.norm(t)) for f, t in zip(found[:2], truth[:2], strict=True)])
    assert max(distances[1]) < 0.03
    assert max(distances[1]) < min(distances[0]) / 2  # what is left is the noise of the rate
    if horizon is None:  # visits after a cut are left out of the weights, whatever the values
        assert relative_error(estimator.estimate(oracle, x, context, rng).gradient, _exact(oracle, x, context)) < 0.15


@pytest.mark.parametrize("moving", [EVERYTHING, REWARDS])
def test_a_constant_reward_changes_nothing_where_no_episode_ends(moving: tuple[str, ...]) -> None:
    model = _model(moving, terminating=False, discount=0.9)
    x, found = random_x(4), []
    for shift in (0.0, 50.0):
        shifted = model.replace(
            leader_reward=lambda x, shift=shift: model.part("leader_reward", x) + shift,
            reward=lambda x, shift=shift: model.part("reward", x) - shift,
        )
        oracle, rng = _oracle(TabularEnv(shifted, horizon=30)), np.random.default_rng(0)
        estimator = TDEstimator(20)
        estimator.bind(oracle)
        found.append(torch.stack([estimator.estimate(oracle, x, 0, rng).gradient for _ in range(20)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)
    assert float(found[0].std(0).min()) > 0.0


# ------------------------------------------------------------------------------------------ compiled and literal reading


def _literal(batch: Trajectories, policy: Any, bonus: Any, gamma: float, gamma_leader: float, rate: float, lam: float, raw: Any):  # type: ignore[no-untyped-def]
    """The module's formulas, in plain Python, from tables of zeros: Qbar, V, W_r, W_rbar."""
    q, v = np.zeros_like(policy), np.zeros(len(policy))
    order = list(range(batch.n_steps))
    for i in reversed(range(1, batch.n_steps)):
        j = int(uniform(raw) * (i + 1))
        order[i], order[j] = order[j], order[i]
    ends = {int(end) - 1: e for e, end in enumerate(batch.ends)}
    for i in order:
        s, a = batch.states[i], batch.actions[i]  # type: ignore[index]
        leader_future, future = 0.0, 0.0
        if i not in ends:
            leader_future, future = q[batch.states[i + 1], batch.actions[i + 1]], v[batch.states[i + 1]]  # type: ignore[index]
        elif not batch.terminated[ends[i]]:
            last = batch.final_states[ends[i]]  # type: ignore[index]
            leader_future, future = policy[last] @ q[last], v[last]
        q[s, a] += rate * (batch.leader_rewards[i] + gamma_leader * leader_future - q[s, a])
        v[s] += rate * (batch.rewards[i] + bonus[s] + gamma * future - v[s])
    w_r, w_rbar = np.zeros_like(policy), np.zeros_like(policy)
    advantage = q - (policy * q).sum(-1, keepdims=True)
    for begin, end in zip(batch.starts, batch.ends, strict=True):
        for t in range(begin, end):
            s, a = batch.states[t], batch.actions[t]  # type: ignore[index]
            w_rbar[s, a] += gamma_leader ** (t - begin) / 2.5
            for k in range(begin, t + 1):
                kick = gamma_leader ** (k - begin) * advantage[batch.states[k], batch.actions[k]] / lam  # type: ignore[index]
                w_r[s, a] += gamma ** (t - k) * kick / 2.5
    return q, v, w_r, w_rbar


def test_kernels_agree_with_a_literal_reading() -> None:
    model = random_model(5, states=5, moving=REWARDS, discount=0.9, leader_discount=0.8)
    oracle, rng = _oracle(TabularEnv(model, horizon=6), 0.5), np.random.default_rng(0)
    policy = oracle.respond(random_x(5), 0, rng)
    batch = oracle.sample(policy, 60, rng)
    assert 0 < batch.terminated.sum() < batch.n_episodes
    table, raw = policy.table, rng.bit_generator.random_raw(4)
    assert table is not None
    bonus = 0.5 * entr(table).sum(-1)
    q, v, seen = np.zeros((5, 3)), np.zeros(5), np.zeros(5, dtype=np.bool_)
    steps = (batch.states, batch.actions, batch.rewards, batch.leader_rewards, batch.ends, batch.terminated, batch.final_states)
    counts = np.zeros(2)
    learn(*steps, table, bonus, 0.9, 0.8, 0.3, False, raw.copy(), q, v, seen, counts)
    assert counts.tolist() == [1, batch.n_episodes]
    w_r, w_rbar = np.empty_like(q), np.empty_like(q)
    trace_weights(batch.states, batch.actions, batch.ends, table, q, np.array([2.0, 5.0]), 0.9, 0.8, 0.5, w_r, w_rbar)
    literal = _literal(batch, table, bonus, 0.9, 0.8, 0.3, 0.5, raw.copy())
    for one, other in zip((q, v, w_r, w_rbar), literal, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    assert batch.states is not None
    assert set(np.flatnonzero(seen)) == set(batch.states.tolist())


def test_what_nobody_has_seen_is_worth_what_came_before() -> None:
    """Values of unseen states are never read: neither as successors nor as starts."""
    model, context = _model(), 0
    x = random_x(4)
    truth, found = _true_tables(model, x, context), []
    truth.seen[3] = False
    for wrong in (0.0, 1e6):
        truth.q[3], truth.value[3] = wrong, wrong
        oracle, estimator = _oracle(TabularEnv(model)), TDEstimator(1, td_rate=1e-15)  # a follower who has answered nothing yet
        estimator.bind(oracle)
        estimator._tables[context] = Tables(*(part.copy() for part in truth))
        rng, gradients = np.random.default_rng(0), []
        while len(gradients) < 10 and not estimator._tables[context].seen[3]:
            gradients.append(estimator.estimate(oracle, x, context, rng).gradient)
        found.append(torch.stack(gradients[:-1]))
    assert len(found[0]) > 0
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0)


# --------------------------------------------------------------------------------------------------- runs, many and resumed


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("options", [{}, {"contexts": 2}])
def test_each_run_of_many_is_that_run_alone(options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaders.gradients.batch.available_threads", lambda: threads)
    leader, follower, seeds = leaders.HPGD(0.1, 100, "td", td_rate=0.4), followers.SoftPolicyIteration(0.05), [0, 7, 3, 12, 5]
    batch = TDEstimator.batched(_oracle(small_rooms(), 0.05), [leader.estimator] * 5)
    assert isinstance(batch, TDBatch)
    runs = leaders.optimize_many(small_rooms(), leader, follower, 12, seeds=seeds, evaluate_every=5, **options)
    for run, seed in zip(runs, seeds, strict=True):
        alone = leaders.optimize(small_rooms(), leader, follower, 12, seed=seed, evaluate_every=5, **options)
        assert torch.equal(run.x, alone.x)
        assert (run.env_steps, run.leader_return) == (alone.env_steps, alone.leader_return)
        assert run.history.columns == alone.history.columns
        for name in set(run.history.columns) - {"seconds"}:
            np.testing.assert_array_equal(run.history[name], alone.history[name])


def test_many_runs_without_ends_and_those_that_cannot_be_made_at_once() -> None:
    endless, follower = _model(REWARDS, terminating=False), followers.SoftPolicyIteration(0.3)
    leader = leaders.HPGD(0.1, 50, "td")
    assert isinstance(TDEstimator.batched(_oracle(endless, 0.3), [leader.estimator] * 4), TDBatch)
    runs = leaders.optimize_many(endless, leader, follower, 8, seeds=[0, 1, 2, 3], contexts=2)
    for run, seed in zip(runs, range(4), strict=True):
        alone = leaders.optimize(endless, leader, follower, 8, seed=seed, contexts=2)
        torch.testing.assert_close(run.x, alone.x, rtol=1e-9, atol=1e-9)
    assert TDEstimator.batched(_oracle(_model()), [leader.estimator] * 4) is None  # transitions depend on x
    different = [leaders.HPGD(0.1, steps, "td").estimator for steps in (50, 50, 60, 50)]
    assert TDEstimator.batched(_oracle(endless), different) is None


@pytest.mark.parametrize("problem", [four_rooms, _model, partial(TaxDesign, grid_size=11)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(problem: Any, tmp_path: Path) -> None:
    def leader() -> leaders.Leader:
        return leaders.HPGD(0.1, 200, "td", hidden=(8,), epochs=1)

    follower, options = followers.SoftPolicyIteration(0.2), {"seed": 2, "evaluate_every": 5}
    whole = leaders.optimize(problem(), leader(), follower, 14, **options)
    leaders.optimize(
        problem(), leader(), follower, 14, **options, checkpoints=Checkpoints(tmp_path, 7), callback=lambda p: p.iteration >= 5
    )
    resumed = leaders.optimize(problem(), leader(), follower, 14, **options, checkpoints=Checkpoints(tmp_path, 7), resume=True)
    assert resumed.iterations == 14
    assert torch.equal(whole.x, resumed.x)
    for column in set(whole.history.columns) - {"seconds"}:
        np.testing.assert_array_equal(whole.history[column], resumed.history[column])


def test_a_hundred_steps_are_enough_to_climb() -> None:
    env, follower = small_rooms(), followers.SoftPolicyIteration(0.05)
    result = leaders.optimize(env, leaders.HPGD(0.2, 100, "td"), follower, 400, seed=0, evaluate_every=399)
    exact = leaders.optimize(env, leaders.ExactGradient(0.5), follower, 150, seed=0)
    start = float(result.history["leader_return"][0])
    assert exact.leader_return is not None
    assert result.leader_return is not None
    assert result.leader_return - start > 0.8 * (exact.leader_return - start) > 0.0


# ------------------------------------------------------------------------------------------------------------- networks


class _Known:
    """In place of a network over one-hot states: values that are known, and that nothing can be taught."""

    def __init__(self, values: Any):
        self._values = torch.from_numpy(values.reshape(len(values), -1))

    def predict(self, inputs: Tensor) -> Tensor:
        return inputs @ self._values

    def fit(self, *args: Tensor, choices: Tensor) -> None:
        pass


@pytest.mark.parametrize("moving", [*((part,) for part in EVERYTHING[:4]), EVERYTHING[:4]])
def test_beyond_tables_the_mean_is_exact_where_the_networks_are(moving: tuple[str, ...]) -> None:
    model, context = _model(moving), 1
    oracle, x, rng = _oracle(TabularEnv(model, horizon=None)), random_x(4), np.random.default_rng(0)
    networks = NetworkTD(oracle, LAMBDA, TDEstimator(hidden=(), epochs=1).training)
    truth, policy = _true_tables(model, x, context), oracle.respond(x, context, rng)
    critic: Any = _Critic(_Known(truth.q), _Known(truth.value))  # type: ignore[arg-type]
    networks._critics[context] = critic
    estimates = [networks.estimate(oracle, oracle.sample(policy, 1000, rng), policy, x, rng) for _ in range(60)]
    deviation, error = _deviation(estimates, _exact(oracle, x, context))
    assert deviation < 4.0
    assert error < 0.1


def test_beyond_tables_the_weights_are_those_of_a_literal_reading() -> None:
    model, context = _model(EVERYTHING[:4], discount=0.9), 2
    oracle, x, rng = _oracle(TabularEnv(model, horizon=6)), random_x(4), np.random.default_rng(0)
    networks, tables = NetworkTD(oracle, LAMBDA, TDEstimator(hidden=(), epochs=1).training), _true_tables(model, x, context)
    policy = oracle.respond(x, context, rng)
    networks._critics[context] = _Critic(_Known(tables.q), _Known(tables.value), 0.7, (3, 10))  # type: ignore[arg-type]
    batch = oracle.sample(policy, 60, rng)
    assert 0 < batch.terminated.sum() < batch.n_episodes
    found = networks.estimate(oracle, batch, policy, x, rng).gradient
    z, states, last = x.clone().requires_grad_(), batch.states, batch.final_states
    assert states is not None
    assert last is not None
    assert policy.table is not None
    vbar = (policy.table * tables.q).sum(-1)
    reward, leader_reward = (model.part(name, z)[context] for name in REWARDS)
    transition, initial = model.configure(z).transition.values[context].log(), model.part("initial", z)[context].log()
    total = torch.zeros((), dtype=torch.float64)
    for e, (begin, end) in enumerate(zip(batch.starts, batch.ends, strict=True)):
        trace = 0.0
        total = total + (vbar[states[begin]] - 0.7) * initial[states[begin]]
        for t in range(begin, end):
            s, a, power = states[t], batch.actions[t], 0.8 ** (t - begin)
            trace = 0.9 * trace + power * (tables.q[s, a] - vbar[s]) / LAMBDA
            total = total + trace * reward[s, a] + power * leader_reward[s, a]
            if t + 1 < end or not batch.terminated[e]:
                after = states[t + 1] if t + 1 < end else last[e]
                score = 0.9 * trace * (tables.value[after] - tables.value[s]) + 0.8 * power * (vbar[after] - vbar[s])
                total = total + score * transition[s, a, after]
    episodes = (10 + batch.n_episodes) / 4  # the mean of four estimates
    torch.testing.assert_close(found, torch.autograd.grad(total / episodes, z)[0], rtol=1e-9, atol=1e-10)


def test_networks_learn_the_values_step_by_step() -> None:
    model, context = _model(EVERYTHING[:4]), 1
    oracle, x, rng = _oracle(TabularEnv(model, horizon=None)), random_x(4), np.random.default_rng(0)
    networks = NetworkTD(oracle, LAMBDA, TDEstimator(hidden=(32,), epochs=2, learning_rate=1e-2).training)
    policy, gradients = oracle.respond(x, context, rng), []
    for _ in range(30):
        gradients.append(networks.estimate(oracle, oracle.sample(policy, 500, rng), policy, x, rng).gradient)
    assert relative_error(torch.stack(gradients[10:]).mean(0), _exact(oracle, x, context)) < 0.2


@pytest.mark.parametrize("hidden", [None, ()])
def test_a_continuous_environment_with_actions_of_several_parts(hidden: tuple[int, ...] | None) -> None:
    """Tax design as it is: rewards and transitions depend on x, actions are MultiDiscrete, observations a number."""
    env, follower = TaxDesign(grid_size=11), followers.SoftPolicyIteration(0.3)
    estimator, rng = TDEstimator(200, epochs=1, hidden=hidden), np.random.default_rng(0)
    oracle = followers.TrajectoryOracle(env, follower)
    estimator.bind(oracle)
    assert estimator._networks is not None
    estimates = [estimator.estimate(oracle, torch.zeros(4, dtype=torch.float64), 0, rng) for _ in range(2)]
    assert all(bool(torch.isfinite(e.gradient).all()) and e.gradient.abs().sum() > 0 for e in estimates)
    assert all(e.metrics["td_error"] > 0 and e.env_steps >= 200 for e in estimates)


# -------------------------------------------------------------------------------------------------------------- refusals


class _Silent(followers.Follower):
    """A follower whose policy exposes no probabilities."""

    regularization = 1.0
    exposes_probabilities = False

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_steps": 0}, "env_steps is 0"),
        ({"td_rate": 0.0}, "td_rate is 0.0; expected a finite number above 0 and at most 1"),
        ({"td_rate": 1.5}, "td_rate is 1.5"),
        ({"hidden": 64}, "hidden is 64; expected the widths"),
        ({"hidden": np.array(64)}, r"hidden is array\(64\); expected the widths"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0.5}, "batch_size is 0.5"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"action_samples": 0}, "action_samples is 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        TDEstimator(**options)


def test_what_cannot_work_is_refused_before_anything_runs() -> None:
    with pytest.raises(errors.UnsupportedError, match="needs action probabilities"):
        TDEstimator().bind(followers.TrajectoryOracle(_model(REWARDS), _Silent()))
    oracle = _oracle(_model(REWARDS))
    with pytest.raises(errors.OptionError, match="before bind"):
        TDEstimator().estimate(oracle, torch.zeros(4, dtype=torch.float64), 0, np.random.default_rng(0))
    with pytest.raises(errors.OptionError, match="option of estimator='td'"):
        leaders.HPGD(td_rate=0.1)
