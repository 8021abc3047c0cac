r"""Road networks: nodes, links with travel times that rise with their flow, and trips; those that are built in.

Travel times are those of the Bureau of Public Roads, in minutes at a flow of f vehicles per hour, or whatever unit trips have:

    t(f) = t0 (1 + b (f / capacity)^power).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import ModelError
from bocmdp_gym.options import check_count

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
#: Of links shorter than this, in minutes, none is built.
_BLOCK = 2.5
_CAPACITY = 1_800.0
#: How many times its capacity the busiest road would carry, if all took the shortest way.
_BUSIEST = 2.0


@dataclass(frozen=True)
class RoadNetwork(Constructed):
    """A network of roads and the trips on it. Nodes are numbered from 0.

    Attributes:
        name: what it is called.
        tail, head: of each link, ``(K,)``.
        capacity, free_flow_time, b, power: of the travel times ``(K,)``; times in minutes.
        trips: from node to node ``(N, N)``.
        passable: nodes that a trip may pass through on its way ``(N,)``; others are only starts and ends.
        position: of the nodes ``(N, 2)``, for drawing; any unit.
    """

    name: str
    tail: Indices
    head: Indices
    capacity: Array
    free_flow_time: Array
    b: Array
    power: Array
    trips: Array
    passable: npt.NDArray[np.bool_]
    position: Array

    @property
    def n_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.trips)

    @property
    def n_links(self) -> int:
        """Number of links K."""
        return len(self.tail)

    def check(self) -> RoadNetwork:
        """The network itself, after a look at its numbers.

        Raises:
            ModelError: a link without capacity, with a negative time or to a node that does not exist; negative trips; trips to a
                place that cannot be reached.
        """
        for name, low, strictly in (("capacity", 0.0, True), ("free_flow_time", 0.0, False), ("b", 0.0, False)):
            self._check_links(name, low, strictly)
        self._check_links("power", 0.0, False)
        if not (np.isfinite(self.trips).all() and (self.trips >= 0.0).all()):
            i, j = np.argwhere(~(np.isfinite(self.trips) & (self.trips >= 0.0)))[0]
            raise ModelError(f"{self.name}: {self.trips[i, j]} trips from node {i + 1} to {j + 1}; expected a number >= 0.")
        outside = (self.tail < 0) | (self.head < 0) | (self.tail >= self.n_nodes) | (self.head >= self.n_nodes)
        if outside.any():
            k = int(np.flatnonzero(outside)[0])
            raise ModelError(f"{self.name}: {self.describe(k)} joins nodes that do not exist; there are {self.n_nodes}.")
        if not self.demand().any():
            raise ModelError(f"{self.name} has no trips between different nodes; expected at least one.")
        for destination in self.destinations():
            lost = (self.demand()[:, destination] > 0.0) & ~self.reaching(destination)
            if lost.any():
                origin = int(np.flatnonzero(lost)[0])
                raise ModelError(
                    f"{self.name}: node {destination + 1} cannot be reached from node {origin + 1}, and "
                    f"{self.trips[origin, destination]:g} trips want to go there; drop the trips, or add a road."
                )
        return self

    def _check_links(self, name: str, low: float, strictly: bool) -> None:
        values: Array = getattr(self, name)
        fine = np.isfinite(values) & ((values > low) if strictly else (values >= low))
        if not fine.all():
            k, sign = int(np.flatnonzero(~fine)[0]), ">" if strictly else ">="
            raise ModelError(f"{self.name}: {self.describe(k)} has {name} {values[k]:g}; expected a number {sign} {low:g}.")

    def describe(self, link: int) -> str:
        """A link in words, with nodes as files number them, from 1."""
        return f"link {link} ({self.tail[link] + 1} to {self.head[link] + 1})"

    def demand(self) -> Array:
        """Trips between different nodes ``(N, N)``."""
        return self.trips * (1.0 - np.eye(self.n_nodes))

    def destinations(self) -> Indices:
        """The nodes that trips go to."""
        return np.flatnonzero(self.demand().sum(0) > 0.0)

    def reaching(self, destination: int) -> npt.NDArray[np.bool_]:
        """Nodes from which a trip can get to a destination ``(N,)``."""
        reached = np.arange(self.n_nodes) == destination
        while True:
            through = reached[self.head] & (self.passable[self.head] | (self.head == destination))
            larger = reached.copy()
            larger[self.tail[through]] = True
            if (larger == reached).all():
                return reached
            reached = larger

    def times(self, loads: Tensor) -> Tensor:
        """Travel times t(f) ``(K,)`` at flows ``(K,)``, in minutes."""
        free = torch.from_numpy(self.free_flow_time)
        return free + free * torch.from_numpy(self.b) * self._saturation(loads)

    def external_costs(self, loads: Tensor) -> Tensor:
        """f t'(f) ``(K,)``: what one more vehicle costs those who are on the link already, in minutes."""
        slope = torch.from_numpy(self.free_flow_time * self.b * self.power)
        return slope * self._saturation(loads)

    def _saturation(self, loads: Tensor) -> Tensor:
        """(f / capacity)^power."""
        return (loads / torch.from_numpy(self.capacity)) ** torch.from_numpy(self.power)

    def beckmann(self, loads: Array) -> float:
        """Beckmann's objective, the sum over links of the integral of t from 0 to f."""
        share = self.b / (self.power + 1.0) * (loads / self.capacity) ** self.power
        return float((self.free_flow_time * loads * (1.0 + share)).sum())


def link_positions(n_nodes: int, tail: Indices, head: Indices, length: Array) -> Array:
    """Positions ``(N, 2)`` for drawing a network that has none: classical scaling of its distances."""
    graph = csr_matrix((np.maximum(length, 1e-3), (tail, head)), shape=(n_nodes, n_nodes))
    distance = dijkstra(graph, directed=False)
    finite = np.isfinite(distance)
    distance = np.where(finite, distance, 2.0 * distance[finite].max(initial=1.0))
    centred = distance**2
    centred = centred - centred.mean(0) - centred.mean(1)[:, None] + centred.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    positions: Array = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0))
    return positions


def braess(extra_road: bool = True) -> RoadNetwork:
    """Braess's network: 6 vehicles from node 1 to node 4, over two routes, or three with the road from 2 to 3.

    Times are 10 f and 50 + f on the routes and 10 + f on the extra road (Braess 1968): without it 3 vehicles take each route, for
    83 minutes; with it 2 take each of the three, for 92.
    """
    # t0 (1 + b f) in which the slope is t0 b; where the time at no flow is 0, t0 is as small as can be
    tiny = 1e-6
    links = [(0, 1, tiny, 10.0), (0, 2, 50.0, 1.0), (1, 3, 50.0, 1.0), (2, 3, tiny, 10.0), (1, 2, 10.0, 1.0)]
    tail, head, free, slope = (np.array(column) for column in zip(*links[: 5 if extra_road else 4], strict=True))
    trips = np.zeros((4, 4))
    trips[0, 3] = 6.0
    return RoadNetwork(
        name="braess",
        tail=tail.astype(np.int64),
        head=head.astype(np.int64),
        capacity=np.ones(len(tail)),
        free_flow_time=free.astype(np.float64),
        b=slope / free,
        power=np.ones(len(tail)),
        trips=trips,
        passable=np.ones(4, dtype=np.bool_),
        position=np.array([[0.0, 0.5], [0.5, 1.0], [0.5, 0.0], [1.0, 0.5]]),
    )


def grid(size: int = 4, seed: int = 0, zones: int | None = None) -> RoadNetwork:
    """A city of ``size`` x ``size`` crossings: two-way streets of random lengths, every third one an arterial road.

    Args:
        size: crossings along each side, at least 2.
        seed: of lengths and trips.
        zones: crossings that trips start from and go to; 2 ``size``, or all of them, if None.

    Raises:
        OptionError: a value out of range.
    """
    size, seed = check_count("size", size, 2, 500), check_count("seed", seed, 0)
    n = size * size
    n_zones = min(n, 2 * size) if zones is None else check_count("zones", zones, 2, n)
    rng = np.random.default_rng(seed)
    number = np.arange(n).reshape(size, size)
    east = np.stack([number[:, :-1].reshape(-1), number[:, 1:].reshape(-1)], -1)
    south = np.stack([number[:-1].reshape(-1), number[1:].reshape(-1)], -1)
    streets = np.concatenate([east, south])
    line = np.concatenate([east[:, 0] // size, south[:, 0] % size])
    arterial = np.tile(line % 3 == 1, 2)
    tail, head = np.concatenate([streets, streets[:, ::-1]]).T
    time = np.tile(_BLOCK * rng.uniform(1.0, 1.6, len(streets)), 2) * np.where(arterial, 0.9, 1.3)
    capacity = _CAPACITY * np.where(arterial, 2.0, 1.0)
    position = np.stack([np.tile(np.arange(size), size), -np.repeat(np.arange(size), size)], -1) + 0.12 * rng.standard_normal(
        (n, 2)
    )
    places = np.sort(rng.choice(n, n_zones, replace=False))
    weight = rng.lognormal(0.0, 0.5, n_zones)
    between, before = dijkstra(csr_matrix((time, (tail, head)), shape=(n, n)), indices=places, return_predecessors=True)
    trips = np.zeros((n, n))
    trips[places] = np.exp(-between / (8.0 * _BLOCK)) * weight[:, None]
    trips[:, places] *= weight
    trips *= np.isin(number.reshape(-1), places) & (number.reshape(-1) != number.reshape(-1, 1))
    busiest = float((_shortest_ways(trips[places], between, before, tail, head) / capacity).max())
    trips *= _BUSIEST / busiest
    return RoadNetwork(
        name=f"grid of {size} x {size}",
        tail=tail.astype(np.int64),
        head=head.astype(np.int64),
        capacity=capacity,
        free_flow_time=time,
        b=np.full(len(tail), 0.15),
        power=np.full(len(tail), 4.0),
        trips=trips,
        passable=np.ones(n, dtype=np.bool_),
        position=position,
    )


def _shortest_ways(trips: Array, distance: Array, before: npt.NDArray[np.int32], tail: Indices, head: Indices) -> Array:
    """Flows ``(K,)`` if all trips ``(Z, N)`` take the shortest way; ``before``: the node before each on the way from a zone."""
    number = {pair: k for k, pair in enumerate(zip(tail.tolist(), head.tolist(), strict=True))}
    flows = np.zeros(len(tail))
    for wanted, far, previous in zip(trips.copy(), distance, before, strict=True):
        for node in np.argsort(-far):
            if previous[node] >= 0:
                flows[number[int(previous[node]), int(node)]] += wanted[node]
                wanted[previous[node]] += wanted[node]
    return flows
