"""`RoadTolls`: one driver's journey among everyone else's flows, and the leader's seat above all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
import followers
import leaders
from bocmdp_gym.envs import RoadTolls
from bocmdp_gym.errors import DiscountError, OptionError, RegularizationError
from bocmdp_gym.road_network import grid
from tests.bocmdp_gym.test_tntp import write


def test_a_journey_tells_link_time_and_toll() -> None:
    env = RoadTolls(size=3)
    x = np.linspace(0.0, 2.0, 24)
    traffic, network = env.traffic(x), env.network
    node, info = env.reset(seed=0, options={"leader": x, "context": 2, "state": 4})
    goal = int(env.population.classes[2])
    rng, seen, arrived = np.random.default_rng(0), 0, False
    while not arrived:
        action = int(rng.integers(env.action_space.n))
        before = node
        node, reward, arrived, truncated, info = env.step(action)
        assert not truncated
        assert (info["time"] + info["toll"]) == pytest.approx(-reward)
        link = info["link"]
        if link < 0:
            assert (node, info["time"], info["toll"]) == (before, env.population.no_road, 0.0)
            continue
        seen += 1
        assert network.tail[link] == before
        assert info["time"] == pytest.approx(traffic.times[link], rel=1e-9)
        assert info["toll"] == x[link]
        if arrived:
            assert network.head[link] == goal
            assert info["leader_reward"] == pytest.approx(-traffic.travel_time / env.population.n_trips)
        else:
            assert network.head[link] == node
            assert info["leader_reward"] == 0.0
    assert seen >= 3


def test_drivers_of_the_model_make_the_flows() -> None:
    """The soft best response, played, takes links as often as everyone's flows say: 4 standard errors."""
    env = RoadTolls(size=2)
    traffic, oracle = env.traffic(np.zeros(8)), followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization=1.0))
    rng, counts, squares = np.random.default_rng(0), np.zeros(8), np.zeros(8)
    for context, share in enumerate(env.model.context_probabilities):
        batch = oracle.sample(oracle.respond(np.zeros(8), context, rng), 20_000, rng)
        links, starts = env.population.slots[0][batch.states, batch.actions], np.append(0, batch.ends[:-1])
        visits = np.stack([np.add.reduceat((links == k).astype(float), starts) for k in range(8)])
        counts += share * visits.mean(1)
        squares += share**2 * visits.var(1) / visits.shape[1]
    expected = traffic.flows / env.population.n_trips
    assert (np.abs(counts - expected) < 4.0 * np.sqrt(squares)).all()


def test_the_leader_shortens_journeys() -> None:
    env = gym.make("bocmdp/RoadTolls-v0", size=3)
    leader = leaders.ExactGradient(learning_rate=0.3, optimizer="Adam")
    result = leaders.optimize(env, leader, followers.SoftPolicyIteration(regularization=1.0), 15, seed=0, progress=False)
    core = bocmdp_gym.configurable(env)
    before, after = (core.traffic(x).travel_time / core.population.n_trips for x in (np.zeros(24), result.x.numpy()))
    assert result.leader_return == pytest.approx(-after)
    assert after < before - 0.05
    assert (result.x.numpy() >= 0.0).all()


def test_the_optimum_is_stated_where_it_is_known() -> None:
    env = RoadTolls(size=2, objective="net_benefit")
    best = env.benchmark()
    assert best is not None
    assert best.is_optimum
    assert best.x is not None
    assert float(env.model.leader_return(best.x, 1.0)[()]) == pytest.approx(best.value)
    assert best.value > float(env.model.leader_return(0.5 * best.x, 1.0))
    other = env.benchmark(0.5)
    assert other is not None
    assert other.regularization == 0.5
    assert RoadTolls(size=2).benchmark() is None
    assert RoadTolls(size=2, objective="net_benefit", toll_bounds=(0.0, 0.1)).benchmark() is None
    assert RoadTolls(size=2, objective="net_benefit", tollable=[0]).benchmark() is None


def test_a_network_comes_from_files(tmp_path: Path) -> None:
    env = RoadTolls(network=str(write(grid(2), tmp_path)))
    assert env.network.name == "City"
    assert env.traffic(np.zeros(8)).travel_time == pytest.approx(RoadTolls(size=2).traffic(np.zeros(8)).travel_time)


def test_maps_are_drawn() -> None:
    env = RoadTolls(network="braess", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    env.reset(seed=0, options={"leader": np.full(5, 30.0)})
    assert (env.render() != first).any()  # flows have changed
    figure = env.result_figure(np.full(5, 30.0), np.zeros((1, 4, 2)))
    assert [axes.get_title().partition(":")[0] for axes in figure.axes[:3]] == ["before", "after", "tolls"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": "gird"}, OptionError, "network is 'gird'; expected 'grid'"),
        ({"network": 3}, OptionError, "network is 3"),
        ({"discount": 0.9}, DiscountError, "expected 1"),
        ({"regularization": 0.0}, RegularizationError, "regularization"),
        ({"size": 0}, OptionError, "size"),
        ({"seed": 0.5}, OptionError, "seed"),
        ({"leader_discount": 2.0}, DiscountError, "leader_discount"),
        ({"horizon": 0}, OptionError, "horizon"),
        ({"objective": "fun"}, OptionError, "fun"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RoadTolls(**options)


def test_drivers_of_another_lambda_are_refused() -> None:
    with pytest.raises(OptionError, match=r"the followers of RoadTolls play by regularization 2\.0"):
        followers.TrajectoryOracle(
            gym.make("bocmdp/RoadTolls-v0", size=2, regularization=2.0), followers.SoftPolicyIteration(regularization=1.0)
        )
