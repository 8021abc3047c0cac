"""Road networks: travel times, the built-in ones, and those that make no sense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.road_network import braess, grid


def test_times_slopes_and_beckmann_belong_together() -> None:
    network = grid(3)
    flows = torch.linspace(100.0, 3000.0, network.n_links, dtype=torch.float64, requires_grad=True)
    times = network.times(flows)
    (slopes,) = torch.autograd.grad(times.sum(), flows)
    times = times.detach()
    torch.testing.assert_close(network.external_costs(flows.detach()), (flows * slopes).detach())
    below, above = (network.beckmann(flows.detach().numpy() + h) for h in (-1e-2, 1e-2))
    assert (above - below) / 2e-2 == pytest.approx(float(times.sum()), rel=1e-6)
    ratio = (float(flows.detach()[5]) / network.capacity[5]) ** 4
    assert times[5].item() == pytest.approx(network.free_flow_time[5] * (1.0 + 0.15 * ratio))


def test_a_grid_is_a_city() -> None:
    network = grid(5, seed=3)
    assert (network.n_nodes, network.n_links) == (25, 80)
    assert len(network.destinations()) == 10
    assert network.check() is network
    assert {*zip(network.tail, network.head, strict=True)} == {*zip(network.head, network.tail, strict=True)}  # two ways
    np.testing.assert_array_equal(network.trips, grid(5, seed=3).trips)
    assert not np.array_equal(network.trips, grid(5, seed=4).trips)
    assert len(grid(5, zones=4).destinations()) == 4
    for wrong in ({"size": 1}, {"seed": -1}, {"zones": 1}, {"zones": 26, "size": 5}):
        with pytest.raises(OptionError):
            grid(**wrong)


def test_the_busiest_road_carries_twice_its_capacity_by_shortest_ways() -> None:
    """By brute force over all nodes: trips follow the times to their destination downhill."""
    network = grid(4, seed=1)
    n, flows = network.n_nodes, np.zeros(network.n_links)
    for destination in network.destinations():
        distance = np.where(np.arange(n) == destination, 0.0, np.inf)
        for _ in range(n):
            np.minimum.at(distance, network.tail, distance[network.head] + network.free_flow_time)
        for origin, trips in enumerate(network.demand()[:, destination]):
            node = origin
            while trips > 0.0 and node != destination:
                links = np.flatnonzero(network.tail == node)
                link = links[(network.free_flow_time + distance[network.head])[links].argmin()]
                flows[link] += trips
                node = int(network.head[link])
    assert (flows / network.capacity).max() == pytest.approx(2.0)


def test_networks_that_make_no_sense_are_refused() -> None:
    network = braess()
    broken = {
        "capacity": ("link 0 .1 to 2. has capacity 0", network.capacity * [0, 1, 1, 1, 1]),
        "free_flow_time": ("link 1 .* free_flow_time -50", network.free_flow_time * [1, -1, 1, 1, 1]),
        "power": ("power inf", np.array([1.0, 1.0, np.inf, 1.0, 1.0])),
        "trips": ("-1.0 trips from node 1 to 4", -network.trips / 6.0),
        "head": ("joins nodes that do not exist", network.head + 3),
    }
    for name, (message, values) in broken.items():
        changed = replace(network, **{name: values})
        with pytest.raises(ModelError, match=message):
            changed.check()
    with pytest.raises(ModelError, match="no trips between different nodes"):
        replace(network, trips=np.eye(4)).check()
    with pytest.raises(ModelError, match="node 1 cannot be reached from node 4, and 6 trips want to go there"):
        replace(network, trips=network.trips.T.copy()).check()
    with pytest.raises(ModelError, match="node 4 cannot be reached from node 1"):
        replace(network, passable=np.array([True, False, False, True])).check()
