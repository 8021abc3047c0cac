"""The oracle of a population: the same as a trajectory oracle of fictitious play."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import followers
import leaders
from bocmdp_gym import errors
from followers import FictitiousPlay, PopulationOracle, SoftPolicyIteration
from tests.bocmdp_gym.test_population import random_population


def roads() -> Any:
    return gym.make("bocmdp/RoadTolls-v0", network="braess", tollable=[4])


def test_it_plays_and_measures() -> None:
    oracle = PopulationOracle(roads(), SoftPolicyIteration(1.0), rounds=6)
    found = oracle.play([0.0], np.random.default_rng(0))
    assert isinstance(oracle.follower, FictitiousPlay)
    assert found.rounds == 6
    assert found.exploitability == followers.exploitability(oracle.population, found.policies, [0.0], found.loads, 1.0)
    np.testing.assert_array_equal(found.loads, oracle.population.loads_of(found.visits))
    exact = oracle.population.equilibrium([0.0], 1.0).loads
    np.testing.assert_allclose(found.loads, exact, rtol=0.02)


def test_it_takes_a_population_as_it_is() -> None:
    oracle = PopulationOracle(random_population(0, terminating=True), SoftPolicyIteration(0.5), tolerance=1e-3, rounds=50)
    assert oracle.play(np.zeros(4), np.random.default_rng(0)).exploitability <= 1e-3


def test_it_makes_the_run_of_its_follower() -> None:
    leader = leaders.ZeroOrder(1.0, smoothing=0.5)
    options: dict[str, Any] = {"iterations": 3, "x0": [5.0], "progress": False}
    one = leaders.optimize(
        roads(), leader, SoftPolicyIteration(1.0), oracle=functools.partial(PopulationOracle, rounds=2), **options
    )
    other = leaders.optimize(roads(), leader, FictitiousPlay(SoftPolicyIteration(1.0), rounds=2), **options)
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.history["exploitability"], other.history["exploitability"])


def test_a_leader_estimates_with_it() -> None:
    """Dearer is better on the bridge of Braess's network: the difference of exact returns says so too."""
    oracle, rng = PopulationOracle(roads(), SoftPolicyIteration(1.0), rounds=30), np.random.default_rng(0)
    leader = leaders.ZeroOrder(smoothing=0.1, two_sided=True, directions=4)
    gradient = float(leader.estimate(oracle, [10.0], 0, rng)[0])
    model = oracle.population
    exact = float(model.leader_return([10.1], 1.0) - model.leader_return([9.9], 1.0)) / 0.2
    assert exact > 0.0
    assert gradient > 0.0


def test_it_refuses_what_is_no_population() -> None:
    with pytest.raises(errors.UnsupportedError, match="has no population"):
        PopulationOracle(gym.make("bocmdp/FourRooms-v0"), SoftPolicyIteration(1.0))
    with pytest.raises(errors.LeaderParameterError):
        PopulationOracle(roads(), SoftPolicyIteration(1.0)).play([0.0, 1.0], np.random.default_rng(0))
