"""Drivers on roads: known equilibria and optima, Sioux Falls where its files are at hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bocmdp_gym import tntp
from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.road_network import braess, grid
from bocmdp_gym.traffic import RoadTraffic

needs_sioux_falls = pytest.mark.skipif(
    not (tntp.data_folder() / "sioux_falls" / "SiouxFalls_net.tntp").is_file(),
    reason=f"Sioux Falls is not in {tntp.data_folder()}: name a folder of data that has it by {tntp.DATA_VARIABLE}",
)


@cache
def city(objective: Any = "net_benefit") -> RoadTraffic:
    return RoadTraffic(grid(3, seed=1), objective)


@cache
def sioux_falls(objective: Any = "net_benefit") -> RoadTraffic:
    return RoadTraffic(tntp.sioux_falls(), objective)


def check_gradient(model: RoadTraffic, x: Any, regularization: float, links: Any, step: float = 1e-4) -> None:
    point = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.leader_return(point, regularization), point)
    for link in links:
        h = step * np.eye(len(x))[link]
        with torch.no_grad():
            ends = [float(model.leader_return(x + sign * h, regularization)) for sign in (1.0, -1.0)]
        difference = (ends[0] - ends[1]) / (2.0 * step)
        assert abs(float(gradient[link]) - difference) < 1e-6 * float(gradient.abs().max())


# --------------------------------------------------------------------------------------------------------------- Braess


@pytest.mark.parametrize("regularization", [0.3, 0.03])
def test_the_extra_road_of_braess_makes_everybody_late(regularization: float) -> None:
    """83 minutes without it, 92 with it, in the limit; and a toll on that road alone mends it."""
    without, with_it = (RoadTraffic(braess(extra), "travel_time") for extra in (False, True))
    assert without.traffic(np.zeros(4), regularization).travel_time == pytest.approx(6 * 83.0)
    free = with_it.traffic(np.zeros(5), regularization)
    assert free.travel_time == pytest.approx(6 * 92.0, rel=2e-4)
    np.testing.assert_allclose(free.flows, [4.0, 2.0, 2.0, 4.0, 2.0], atol=0.05)
    gate = RoadTraffic(braess(), "travel_time", tollable=[4], toll_bounds=(0.0, 40.0))
    closed = gate.traffic([25.0], regularization)
    assert closed.travel_time == pytest.approx(6 * 83.0, rel=1e-4)
    assert closed.flows[4] < 1e-4
    values = [float(gate.leader_return([toll], regularization)) for toll in np.linspace(0.0, 20.0, 9)]
    assert values == sorted(values)  # the more it costs, the sooner all are there


def test_a_leader_finds_the_toll_that_closes_the_extra_road() -> None:
    model = RoadTraffic(braess(), "travel_time", tollable=[4], toll_bounds=(0.0, 40.0))
    found = minimize(lambda x: _loss(model, x, 0.3), [0.5], jac=True, bounds=[(0.0, 40.0)], method="L-BFGS-B")
    assert -found.fun == pytest.approx(-83.0, abs=1e-3)


def _loss(model: RoadTraffic, x: Any, regularization: float) -> tuple[float, Any]:
    point = torch.tensor(x, requires_grad=True)
    value = model.leader_return(point, regularization)
    (gradient,) = torch.autograd.grad(value, point)
    return -float(value.detach()), -gradient.numpy()


def test_the_hypergradient_on_braess_equals_central_differences() -> None:
    for objective in ("travel_time", "revenue", "net_benefit"):
        model = RoadTraffic(braess(), objective)  # type: ignore[arg-type]
        check_gradient(model, np.linspace(1.0, 5.0, 5), 1.0, range(5))


# ----------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("objective", ["travel_time", "revenue", "net_benefit", "mix"])
def test_the_hypergradient_on_a_city_equals_central_differences(objective: Any) -> None:
    network = grid(3, seed=1)
    model = RoadTraffic(network, objective, mix=(0.5, 2.0, 0.3), tollable=[1, 5, 20])
    check_gradient(model, np.array([0.5, 3.0, 1.5]), 1.0, range(3))


def test_flows_are_conserved_and_add_up() -> None:
    model = city()
    network, found = model.network, model.traffic(np.full(24, 0.7), 1.0)
    balance = np.bincount(network.tail, found.flows, 9) - np.bincount(network.head, found.flows, 9)
    demand = network.demand()
    np.testing.assert_allclose(balance, demand.sum(1) - demand.sum(0), rtol=1e-8, atol=1e-6)
    assert found.revenue == pytest.approx(0.7 * found.flows.sum())
    assert float(model.leader_return(np.full(24, 0.7), 1.0)) == pytest.approx(found.net_benefit / model.n_trips)
    assert found.travel_time == pytest.approx(float(found.flows @ found.times))
    assert len(model.equilibria(np.full(24, 0.7), 1.0, starts=3)) == 1


def test_objectives_are_what_they_say() -> None:
    x = np.full(24, 0.7)
    found = city().traffic(x, 1.0)
    values = {name: float(city(name).leader_return(x, 1.0)) for name in ("travel_time", "revenue", "net_benefit")}
    expected = {"travel_time": -found.travel_time, "revenue": found.revenue, "net_benefit": found.net_benefit}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value / city().n_trips)
    mixed = RoadTraffic(grid(3, seed=1), "mix", mix=(0.5, 2.0, 0.3))
    assert float(mixed.leader_return(x, 1.0)) == pytest.approx(np.dot([0.5, 2.0, 0.3], list(values.values())))


def test_net_benefit_is_largest_at_marginal_cost_tolls() -> None:
    """The gradient is 0 there, and ascent ends at that value, from no tolls and from random ones."""
    model = RoadTraffic(grid(2, seed=1), "net_benefit")
    tolls = model.marginal_cost_tolls(1.0)
    value, gradient = _loss(model, tolls, 1.0)
    assert np.abs(gradient).max() < 1e-10
    found = model.traffic(tolls, 1.0)
    np.testing.assert_allclose(model.network.external_costs(torch.tensor(found.flows)).numpy(), tolls, rtol=1e-8, atol=1e-10)
    bounds, options = [(0.0, 60.0)] * 8, {"ftol": 1e-13, "gtol": 1e-9, "maxcor": 20, "maxiter": 60}
    for start in (np.zeros(8), np.random.default_rng(0).uniform(0.0, 3.0, 8)):
        best = minimize(lambda x: _loss(model, x, 1.0), start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
        assert best.fun == pytest.approx(value, rel=1e-5)
        assert best.fun >= value - 1e-12


def test_zones_are_not_passed_through() -> None:
    """Nodes 2 and 3 of Braess's network as zones: the only way left from 1 to 4 is a new road."""
    network = braess()
    trips = network.trips.copy()
    trips[0, 1] = trips[1, 3] = trips[0, 2] = trips[2, 3] = 1.0
    more = {name: np.append(getattr(network, name)[:4], 1.0) for name in ("capacity", "b", "power")}
    changed = replace(
        network,
        tail=np.append(network.tail[:4], 0),
        head=np.append(network.head[:4], 3),
        free_flow_time=np.append(network.free_flow_time[:4], 90.0),
        trips=trips,
        passable=np.array([True, False, False, True]),
        **more,
    )
    model = RoadTraffic(changed)
    assert model.slots.shape[0] == 3  # classes differ in what is open to them
    found = model.traffic(np.zeros(5), 1.0)
    np.testing.assert_allclose(found.flows, [1.0, 1.0, 1.0, 1.0, 6.0], atol=1e-8)
    with pytest.raises(ModelError, match=r"link 1 .1 to 3. is on no way to a destination"):
        RoadTraffic(replace(changed, trips=trips * [1.0, 1.0, 0.0, 1.0]))


def test_a_dead_end_is_nobodys_way() -> None:
    """A road into a node from which nothing leads on costs less than any other, and is not taken."""
    network = braess()
    trips = np.zeros((5, 5))
    trips[:4, :4] = network.trips
    added = {name: np.append(getattr(network, name), getattr(network, name)[4]) for name in ("capacity", "b", "power")}
    changed = replace(
        network,
        tail=np.append(network.tail, 0),
        head=np.append(network.head, 4),
        free_flow_time=np.append(network.free_flow_time, 1.0),
        trips=trips,
        passable=np.ones(5, dtype=bool),
        position=np.vstack([network.position, [0.0, 0.0]]),
        **added,
    )
    trips[0, 4] = 1e-9  # so that somebody loads it
    found = RoadTraffic(changed).traffic(np.zeros(6), 0.3)
    assert found.flows[5] == pytest.approx(1e-9, rel=1e-3)
    assert found.travel_time == pytest.approx(6 * 92.0, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "speed"),
        ({"objective": "mix", "mix": (1.0, 2.0)}, r"mix has shape \(2,\); expected \(3,\)"),
        ({"tollable": "some"}, r"tollable is 'some'; expected 'all', or numbers of links in 0\.\.23"),
        ({"tollable": [24]}, r"in 0\.\.23"),
        ({"tollable": [0.5]}, r"in 0\.\.23"),
        ({"tollable": []}, r"in 0\.\.23"),
        ({"tollable": [1, 1]}, "expected different links"),
        ({"toll_bounds": (3.0, 3.0)}, "expected the least toll and a larger one"),
        ({"toll_bounds": 3.0}, "toll_bounds"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RoadTraffic(grid(3), **options)
    with pytest.raises(ModelError, match="capacity"):
        RoadTraffic(replace(grid(3), capacity=np.zeros(24)))


# ---------------------------------------------------------------------------------------------------------- Sioux Falls


@needs_sioux_falls
def test_sioux_falls_without_tolls() -> None:
    found = sioux_falls().traffic(np.zeros(76), 1.0)
    assert found.travel_time == pytest.approx(7_433_602.0, abs=50.0)
    assert sioux_falls().n_trips == 360_600.0


@needs_sioux_falls
def test_sioux_falls_tends_to_the_user_equilibrium() -> None:
    model = sioux_falls()
    known = tntp.read_flows(tntp.sioux_falls_file("flow"), model.network)
    assert model.network.beckmann(known) == pytest.approx(42.31335287e5, rel=1e-9)
    start, times, gaps = None, [], []
    for regularization in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        found = model.traffic(np.zeros(76), regularization, start=start)
        start = found.equilibrium
        times.append(abs(found.travel_time - 7_480_225.3))
        gaps.append(float(np.abs(found.flows / known - 1.0).max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.002
    assert gaps[-2] < 0.01
    assert times[-1] < 2_000.0
    assert found.beckmann == pytest.approx(42.3134e5, rel=2e-6)


@needs_sioux_falls
def test_sioux_falls_under_optimal_tolls_tends_to_the_system_optimum() -> None:
    model = sioux_falls()
    times = [model.traffic(model.marginal_cost_tolls(r), r).travel_time for r in (1.0, 0.2, 0.05)]
    assert times[0] == pytest.approx(7_200_743.0, abs=50.0)
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(7_194_256.0, rel=1e-4)
    _, gradient = _loss(model, model.marginal_cost_tolls(1.0), 1.0)
    assert np.abs(gradient).max() < 1e-10


@needs_sioux_falls
def test_the_hypergradient_on_sioux_falls_equals_central_differences() -> None:
    rng = np.random.default_rng(0)
    check_gradient(sioux_falls("travel_time"), rng.uniform(0.0, 5.0, 76), 1.0, rng.choice(76, 6, replace=False), step=1e-3)
