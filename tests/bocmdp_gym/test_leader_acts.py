from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.envs.leader_acts import LAMBDA
from followers.registry import FOLLOWERS, make_follower
from leaders.gradients.registry import ESTIMATORS
from leaders.leaders import estimator_options
from leaders.settings.run import LEADERS
from tests.problems import F64, finite_difference, random_x, relative_error


def _make(**options: Any) -> gym.Env[Any, Any]:
    return gym.make("bocmdp/LeaderActs-v0", **options)


def _core(**options: Any) -> bocmdp_gym.envs.LeaderActs:
    return bocmdp_gym.configurable(_make(**options))


# ------------------------------------------------------------------------------------------------------------- games

#: DiscreteToy4 as it is published, (state, leader's action, follower's action): all else stays, and pays nothing.
MOVES = {
    **{(0, one, 1): 1 for one in (0, 1)},
    **{(0, one, 2): 2 for one in (0, 1)},
    (1, 0, 0): 0,
    (1, 0, 2): 2,
    **{(1, 1, a): 0 for a in range(3)},
    **{(2, one, 0): 0 for one in (0, 1)},
}


def test_discrete_toy_4_step_by_step() -> None:
    env = _core(bonus=1.75, observation="pair")
    paid = {(0, 0, 1): 1, (0, 1, 1): 1, (0, 0, 2): 1, (0, 1, 2): 1, (1, 0, 2): 1.75, (1, 1, 0): -1, (1, 1, 1): -1, (1, 1, 2): -1}
    for state, leader, action in np.ndindex(3, 2, 3):
        observation, info = env.reset(seed=0, options={"state": 2 * state + leader})
        assert (observation.tolist(), info["leader_action"]) == ([state, leader], leader)
        observation, reward, terminated, _, info = env.step(action)
        assert observation[0] == MOVES.get((state, leader, action), state)
        assert reward == paid.get((state, leader, action), 0)
        assert info["leader_reward"] == (state == 0 and action == 1)
        assert not terminated


def _response(reward: Any, regularization: float) -> Any:
    weights = np.exp((reward - np.max(reward, -1, keepdims=True)) / regularization)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("regularization", [0.05, 3.0])
@pytest.mark.parametrize("options", [{"game": "escape"}, {"game": "maintain"}, {"reward": [[0, 1]], "leader_reward": [[2, -1]]}])
def test_matrix_games_have_their_closed_form(options: dict[str, Any], regularization: float) -> None:
    core = _core(**options)
    r, rbar = core.game.reward[0], core.game.leader_reward[0]
    x = random_x(core.model.leader_dim, scale=1.0)
    by_row = (_response(r, regularization) * rbar).sum(-1)
    assert float(core.model.leader_return(x, regularization)) == pytest.approx(core.leader_policy(x)[0] @ by_row, abs=1e-12)
    best = core.benchmark(regularization)
    assert best is not None
    assert best.is_optimum
    assert best.value == pytest.approx(by_row.max(), abs=1e-12)
    assert float(core.model.leader_return(best.x, regularization)) == pytest.approx(best.value, abs=1e-12)
    limit = core.benchmark(0.0)
    assert limit is not None
    assert limit.value == pytest.approx((_response(r, 1e-3) * rbar).sum(-1).max())


def _equilibria(core: bocmdp_gym.envs.LeaderActs) -> list[tuple[int, int]]:
    """Pure equilibria of simultaneous play."""
    follower, leader = core.game.reward[0], core.game.leader_reward[0]
    best = (leader == leader.max(0)) & (follower == follower.max(1, keepdims=True))
    return [(int(row), int(column)) for row, column in np.argwhere(best)]


def test_what_the_named_games_are_about() -> None:
    """Escape: 15 is an equilibrium, 30 the leader's best. Maintain: its best is no equilibrium, and pays more than any."""
    escape, maintain = _core(game="escape"), _core(game="maintain")
    assert {(0, 0), (2, 2)} <= set(_equilibria(escape))
    assert _equilibria(maintain) == [(1, 1), (2, 2)]
    values = [core.benchmark(0.0).value for core in (escape, maintain)]  # type: ignore[union-attr]
    assert values == [30.0, 20.0]
    for core in (escape, maintain):
        leader = leaders.ExactGradient(0.3, optimizer="Adam")
        result = leaders.optimize(core, leader, followers.SoftPolicyIteration(LAMBDA), 100, seed=0, progress=False)
        assert float(core.model.leader_return(result.x, LAMBDA)) == pytest.approx(core.benchmark().value, rel=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("bonus", [1.0, 2.0])
def test_only_one_probability_matters_in_discrete_toy_4(bonus: float) -> None:
    model = _core(bonus=bonus).model
    x = random_x(6, scale=2.0)
    x[[2, 3]] = torch.tensor([0.6, -0.8], dtype=F64)
    moved = x.clone()
    moved[[0, 1, 4, 5]] -= random_x(4, 1, scale=3.0)
    moved[[2, 3]] += 1.5
    assert float(model.leader_return(x, LAMBDA)) == pytest.approx(float(model.leader_return(moved, LAMBDA)), rel=1e-10)
    exact = torch.func.grad(lambda z: model.leader_return(z, LAMBDA))(x)
    assert relative_error(exact, finite_difference(lambda z: model.leader_return(z, LAMBDA), x)) < 1e-6


@pytest.mark.parametrize(("bonus", "value", "sent_back"), [(1.0, 34.9926, 0.1665), (2.0, 39.9402, 0.5026)])
def test_the_best_policy_of_discrete_toy_4(bonus: float, value: float, sent_back: float) -> None:
    """Nothing random is better, ascent reaches it, and the leader mixes."""
    core = _core(bonus=bonus)
    best = core.benchmark()
    assert best is not None
    assert best.value == pytest.approx(value, abs=1e-4)
    assert core.leader_policy(best.x)[1, 1] == pytest.approx(sent_back, abs=1e-4)
    assert float(core.model.leader_return(best.x, LAMBDA)) == pytest.approx(best.value, abs=1e-9)
    others = core.model.leader_return(3.0 * np.random.default_rng(0).standard_normal((500, 6)), LAMBDA)
    assert float(others.max()) <= best.value
    leader = leaders.ExactGradient(0.02, optimizer="Adam")
    result = leaders.optimize(_make(bonus=bonus), leader, followers.SoftPolicyIteration(LAMBDA), 400, seed=0, progress=False)
    assert float(core.model.leader_return(result.x, LAMBDA)) == pytest.approx(value, rel=1e-3)
    assert core.benchmark(0.0) is None


def test_trajectories_suffice() -> None:
    """HPGD with 10,000 steps per update comes within 3% of the best known return, from 0.6 of 35."""
    leader = leaders.HPGD(0.2, estimator="td", env_steps=10_000, td_rate=0.02, schedule="cosine")
    result = leaders.optimize(_make(), leader, followers.SoftPolicyIteration(LAMBDA), 500, seed=0, progress=False)
    assert float(_core().model.leader_return(result.x, LAMBDA)) > 0.97 * 34.9926


# ------------------------------------------------------------------------------------------- what the follower sees


def test_both_observations_show_the_leaders_action() -> None:
    index, pair = _core(), _core(observation="pair")
    assert index.observation_space == gym.spaces.Discrete(6)
    assert pair.observation_space == gym.spaces.MultiDiscrete([3, 2])
    states = np.arange(6)
    np.testing.assert_array_equal(pair.observe(states), [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    for core in (index, pair):
        np.testing.assert_array_equal(core.states_of(core.observe(states)), states)
    for action in [None, 1, 2, 0, 1, 0, 1]:
        told = [core.reset(seed=3) if action is None else core.step(action) for core in (index, pair)]
        first, second = told[0][0], told[1][0]
        assert divmod(first, 2) == tuple(second)
        assert [one[-1]["leader_action"] for one in told] == [second[1]] * 2


@pytest.mark.parametrize("game", ["discrete-toy-4", "escape"])
@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode))
@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_infos_of_copies_tell_the_leaders_action(vectorization: str, mode: gym.vector.AutoresetMode, game: str) -> None:
    own: dict[str, Any] = {"autoreset_mode": mode}
    keywords = own if vectorization == "vector_entry_point" else {"vector_kwargs": own}
    envs = gym.make_vec("bocmdp/LeaderActs-v0", 4, vectorization, game=game, horizon=4, observation="pair", **keywords)
    observations, infos = envs.reset(seed=0)
    envs.action_space.seed(0)
    ends = 0
    for _ in range(12):
        np.testing.assert_array_equal(infos["leader_action"][infos["_leader_action"]], observations[infos["_leader_action"], 1])
        observations, _, terminations, truncations, infos = envs.step(envs.action_space.sample())
        over = terminations | truncations
        ends += int(over.sum())
        if "final_info" in infos:
            last = np.stack([infos["final_obs"][copy] for copy in np.flatnonzero(over)])
            np.testing.assert_array_equal(infos["final_info"]["leader_action"][over], last[:, 1])
        if mode == gym.vector.AutoresetMode.DISABLED and over.any():
            observations, infos = envs.reset(options={"reset_mask": over})
    assert ends >= 8
    envs.close()


def test_a_leader_who_always_does_the_same() -> None:
    env = _make()
    bocmdp_gym.configurable(env).set_leader([0.0, 40.0, 40.0, 0.0, 0.0, 0.0])
    observations = [env.reset(seed=0)[0]] + [env.step(action)[0] for action in [0, 0, 0, 1, 0, 1, 1, 1, 0]]
    assert observations == [1, 1, 1, 1, 2, 1, 2, 2, 2, 1]


# ------------------------------------------------------------------------------------------------ who works with it

#: Budgets on which nobody learns anything.
FOLLOWER_STEPS = {None: None, "iterations": 20, "total_timesteps": 32}
FOLLOWER_OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 32},
    "a2c": {"n_steps": 32},
    "dqn": {"learning_starts": 16, "softmax_temperature": 0.5},
    "soft-dqn": {"learning_starts": 16},
}
BUDGETS = {"env_steps": 100, "samples": 100, "epochs": 1, "levels": 3, "sweeps": 5}
WITHOUT_LAMBDA = ("ppo", "a2c", "dqn")


def _outcome(name: str, leader: str) -> str:
    """ "runs", or the sentence of a refusal."""
    kind = LEADERS.get(leader, leaders.HPGD)
    chosen = {} if leader in LEADERS else {"estimator": leader}
    known = estimator_options(kind.kinds[chosen.get("estimator", next(iter(kind.kinds)))])
    options: dict[str, Any] = {**chosen, **{option: value for option, value in BUDGETS.items() if option in known}}
    if name in WITHOUT_LAMBDA and leader not in ("first-order", "zero-order"):
        options["regularization"] = 0.5
    env = _make(horizon=20, discount=0.9, observation="pair")
    follower = make_follower(name, 0.5, FOLLOWER_STEPS[FOLLOWERS[name].budget], FOLLOWER_OPTIONS.get(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of critics that have seen too little
            result = leaders.optimize(env, kind(0.1, **options), follower, 1, seed=0, progress=False)
    except errors.UnsupportedError as error:
        return str(error)
    return "runs" if np.isfinite(np.asarray(result.x)).all() else "x is not finite"


@pytest.mark.parametrize("name", FOLLOWERS)
def test_every_leader_meets_every_follower_or_says_why_not(name: str) -> None:
    outcomes = {leader: _outcome(name, leader) for leader in [*LEADERS, *ESTIMATORS] if leader != "hpgd"}
    refused = {"pooled": "x does not move"}
    if name not in ("soft-value-iteration", "soft-q-learning", "natural-policy-gradient", "vanilla-policy-gradient"):
        refused["multilevel"] = "lets it continue"
    if name == "linear-programming":
        refused = dict.fromkeys(outcomes.keys() - {"first-order", "zero-order"}, "answers with the best action alone")
    if name == "linear-quadratic":
        refused = dict.fromkeys(outcomes, "solves linear-quadratic problems")
    for leader, outcome in outcomes.items():
        assert refused.get(leader, "runs") in outcome, leader


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"game": "discrete-toy-3"}, "Did you mean 'discrete-toy-4'"),
        ({"observation": "pairs"}, "Did you mean 'pair'"),
        ({"bonus": "R"}, "bonus is 'R'"),
        ({"reward": [[1.0]]}, "payoffs of both sides"),
        ({"leader_reward": [[1.0]]}, "payoffs of both sides"),
        ({"reward": [1.0, 2.0], "leader_reward": [1.0, 2.0]}, r"reward has shape \(2,\); expected \(any, any\)"),
        ({"reward": [[1.0, 2.0]], "leader_reward": [[1.0]]}, r"leader_reward has shape \(1, 1\); expected \(1, 2\)"),
        ({"horizon": None}, "horizon is None"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.BOCMDPError, match=match):
        _make(**options)
    assert _core(game="escape", horizon=None).horizon is None  # it ends by itself
