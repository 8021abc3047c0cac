from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
from bocmdp_gym import errors
from tests.problems import four_rooms, four_rooms_model


def test_dimensions_and_rewards() -> None:
    env = bocmdp_gym.configurable(four_rooms(penalty_cost=3.0))
    model = env.model
    assert (model.n_contexts, model.n_states, model.n_actions, model.leader_dim) == (2, 104, 4, 105)
    x = np.random.default_rng(0).standard_normal(105)
    shares = torch.softmax(torch.tensor(x), 0).numpy()
    mdps = model.configure(x)
    for context, goal in enumerate(env.goals):
        expected = -0.2 * np.repeat(shares[:-1, None], 4, 1)
        expected[goal] = 1.0
        np.testing.assert_allclose(mdps.reward[context].numpy(), expected)
        leader = np.zeros((104, 4))
        leader[env.waypoint] = 1.0
        leader[goal] = -3.0 * 0.2 * (1 - shares[-1])
        np.testing.assert_allclose(mdps.leader_reward[context].numpy(), leader)


def test_slip_moves() -> None:
    env = bocmdp_gym.configurable(gym.make("bocmdp/FourRooms-v0"))
    operator = env.model.configure(np.zeros(105)).transition
    state = env.grid.index[2, 2]
    succ, prob = operator.successors()[0][state, 1], operator.values[0, state, 1].numpy()
    assert [env.grid.cells[s] for s in succ] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    np.testing.assert_allclose(prob, [1 / 9, 2 / 3, 1 / 9, 1 / 9])
    corner = env.grid.index[1, 1]
    assert operator.successors()[0][corner, 0][0] == corner  # into a wall: stay


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"goals": [[0, 0]]}, errors.LayoutError, r"goals\[0\] \[0, 0\] lies inside a wall"),
        ({"start": [40, 1]}, errors.LayoutError, "off the 13 x 13 grid"),
        ({"waypoint": "here"}, errors.LayoutError, "expected"),
        ({"layout": ["xx", "x"]}, errors.LayoutError, "rows of one length"),
        ({"slip_probability": 1.5}, errors.OptionError, "slip_probability"),
        ({"penalty_budget": 0}, errors.OptionError, "penalty_budget"),
        ({"penalty_cost": -1}, errors.OptionError, "penalty_cost"),
        ({"horizon": 0}, errors.OptionError, "horizon"),
        ({"scale": 0}, errors.OptionError, "scale is 0"),
        ({"observation": "coordinate"}, errors.OptionError, "Did you mean 'coordinates'"),
        ({"penalty_cost": "1"}, errors.OptionError, "penalty_cost is '1'"),
        ({"penalty_budget": None}, errors.OptionError, "penalty_budget is None"),
        ({"slip_probability": "1/3"}, errors.OptionError, "slip_probability"),
        ({"discount": "a"}, errors.DiscountError, "discount is 'a'"),
        ({"leader_discount": [0.9]}, errors.DiscountError, "leader_discount"),
        ({"goals": 5}, errors.OptionError, "goals is 5"),
        ({"slip": 0.4}, errors.OptionError, "Did you mean 'slip_probability'"),
        ({"goals": []}, errors.OptionError, "at least one"),
        ({"discount": 1.5}, errors.DiscountError, "1.5"),
        ({"slip_probability": 0.0, "horizon": None}, errors.DiscountError, "horizon is None"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gym.make("bocmdp/FourRooms-v0", **options)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no option 'penalty_cots'\. Did you mean 'penalty_cost'"):
        gym.make("bocmdp/FourRooms-v0", penalty_cots=1.0)


def test_every_setting_survives_json() -> None:
    options = {
        "slip_probability": 0.2, "penalty_cost": 2.0, "penalty_budget": 0.3, "start": [1, 1], "goals": [[1, 9]],
        "waypoint": [2, 2], "horizon": 50, "observation": "coordinates", "discount": 0.95, "leader_discount": 0.9,
        "layout": ["x" * 13, *["x" + " " * 11 + "x"] * 11, "x" * 13],
    }  # fmt: skip
    env = gym.make("bocmdp/FourRooms-v0", **options)
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    core, copy = bocmdp_gym.configurable(env), bocmdp_gym.configurable(again)
    assert copy.discount == 0.95
    assert copy.leader_discount == 0.9
    x = np.ones(core.model.leader_dim)
    torch.testing.assert_close(core.model.leader_return(x, 0.01), copy.model.leader_return(x, 0.01))


def test_coordinates_and_states_are_inverse() -> None:
    core = bocmdp_gym.configurable(four_rooms(observation="coordinates"))
    states = np.arange(104)
    seen = core.observe(states)
    assert seen.dtype == np.float32
    assert core.observation_space.contains(seen[0])
    np.testing.assert_array_equal(core.states_of(seen), states)


def test_pictures() -> None:
    env = four_rooms(render_mode="rgb_array")
    env.reset(seed=0, options={"leader": np.zeros(105), "context": 1})
    frame = env.render()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[-1] == 3
    heavy = np.zeros(105)
    heavy[50] = 8.0
    env.reset(options={"leader": heavy, "context": 1})
    assert (env.render() != frame).any()
    text = four_rooms(render_mode="ansi")
    text.reset(seed=0, options={"context": 0})
    drawn = text.render()
    assert drawn.count("A") == 1
    assert drawn.count("G") == 1
    assert drawn.count("g") == 1
    assert drawn.count("+") == 1


def test_benchmark_is_stated_at_the_published_settings_only() -> None:
    core = bocmdp_gym.configurable(four_rooms(penalty_cost=3.0))
    benchmark = core.benchmark(0.005)
    assert (benchmark.value, benchmark.is_optimum, benchmark.regularization) == (1.354, False, 0.005)
    assert core.benchmark(0.002) is None
    for options in ({"slip_probability": 1 / 3}, {"waypoint": [2, 2]}, {"discount": 0.9}, {"penalty_cost": 2.0}):
        assert bocmdp_gym.configurable(four_rooms(**options)).benchmark() is None


def test_initial_leader_is_small_noise() -> None:
    core = bocmdp_gym.configurable(four_rooms())
    x = core.initial_leader(np.random.default_rng(0))
    assert x.shape == (105,)
    assert 0.005 < x.std() < 0.02


def test_model_is_shared_by_simulator() -> None:
    """One million simulated transitions agree with P, r and q (chi-square, fixed seed)."""
    from scipy.stats import chisquare

    from followers import SoftPolicyIteration, TrajectoryOracle

    env = four_rooms()
    oracle = TrajectoryOracle(env, SoftPolicyIteration(0.3))
    rng = np.random.default_rng(0)
    policy = oracle.respond(np.zeros(105), 0, rng)
    batch = oracle.sample(policy, 1_000_000, rng)
    arrays = four_rooms_model().configure(np.zeros(105)).arrays(0)
    np.testing.assert_array_equal(batch.rewards, arrays.reward[batch.states, batch.actions])
    following = np.append(batch.states[1:], -1)
    following[batch.ends - 1] = batch.final_states
    p_values = []
    going_on = np.ones(batch.n_steps, dtype=bool)
    going_on[batch.ends[batch.terminated] - 1] = False
    for s in range(0, 104, 7):
        for a in range(4):
            here = (batch.states == s) & (batch.actions == a) & going_on
            if here.sum() < 500:
                continue
            row = np.bincount(arrays.successors[s, a], weights=arrays.probabilities[s, a], minlength=104)
            seen = np.bincount(following[here], minlength=104)
            assert seen[row == 0].sum() == 0
            p_values.append(chisquare(seen[row > 0], row[row > 0] * here.sum()).pvalue)
    assert len(p_values) > 10
    assert min(p_values) > 1e-3 / len(p_values)


def test_scale_makes_every_cell_a_block() -> None:
    small, large = (bocmdp_gym.configurable(four_rooms(scale=scale)) for scale in (1, 3))
    assert (large.model.n_states, large.model.leader_dim) == (9 * 104, 9 * 104 + 1)
    for name in ("start", "waypoint"):
        row, column = small.grid.cells[getattr(small, name)]
        assert large.grid.cells[getattr(large, name)] == (3 * row + 1, 3 * column + 1)
    assert large.benchmark() is None
    # a move succeeds unless the cell ahead is a wall: as often as in blocks along walls
    succ = large.model.configure(np.zeros(937)).transition.successors()[0]
    blocked = [
        (s[:, 0] == np.arange(len(s))[:, None]).sum()
        for s in (succ, small.model.configure(np.zeros(105)).transition.successors()[0])
    ]
    assert blocked[0] == 3 * blocked[1]
    large.reset(seed=0)
    large.step(0)
    assert large.picture().shape[0] == 39 * 36


def test_start_anywhere() -> None:
    env = four_rooms(start=None, render_mode="ansi")
    core = bocmdp_gym.configurable(env)
    np.testing.assert_allclose(core.model.configure(np.zeros(105)).initial, np.full((2, 104), 1 / 104))
    assert len({env.reset(seed=seed)[0] for seed in range(20)}) > 10
    assert "S" not in env.render()


def test_a_large_map_is_drawn_small() -> None:
    core = bocmdp_gym.configurable(four_rooms(scale=12, render_mode="rgb_array"))
    core.reset(seed=0)
    assert max(core.render().shape) <= 1440
