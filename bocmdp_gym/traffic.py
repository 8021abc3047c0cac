r"""Drivers on a road network as a population: the model of `bocmdp/RoadTolls-v0`.

The mathematics. A class is everybody who drives to one destination. A driver at node s takes one of its links k, which costs
t_k(f_k) + toll_k minutes, and goes on from where it leads until the destination is reached; the soft choice among a node's links
is the recursive logit (Fosgerau, Frejinger and Karlstrom 2013), and flows that produce the times they answer are a Markovian
traffic equilibrium (Baillon and Cominetti 2008), unique where times rise with flows. As lambda falls it tends to Wardrop's.

With D(s, xi) trips from s to xi, M of them in all, and tolls x, per driver and in minutes,

    travel time   T = sum_k f_k t_k(f_k) / M            revenue   R = sum_k f_k toll_k / M
    net benefit   B = sum D V / M + R,

V the drivers' values, the worth of variety included: lambda times the entropy of their choices. B is largest at marginal-cost
tolls x_k = f_k t_k'(f_k), where its gradient is 0: each driver then pays what it costs the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.equilibrium import Equilibrium
from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.options import as_array, check_array, check_choice
from bocmdp_gym.population import PopulationBOCMDP
from bocmdp_gym.road_network import Array, Indices, RoadNetwork
from bocmdp_gym.transitions import SuccessorTransitions

Objective = Literal["travel_time", "revenue", "net_benefit", "mix"]
#: Weights of minus the travel time, the revenue and the net benefit.
OBJECTIVES: dict[str, tuple[float, float, float]] = {
    "travel_time": (1.0, 0.0, 0.0),
    "revenue": (0.0, 1.0, 0.0),
    "net_benefit": (0.0, 0.0, 1.0),
}
#: Price of an action that is no road, in longest free-flow times: nobody's choice at any lambda of use.
_NO_ROAD = 300.0


@dataclass(frozen=True)
class Traffic(Constructed):
    """What happens under some tolls, in all: sums over drivers, not means.

    Attributes:
        equilibrium: the drivers' (`bocmdp_gym.Equilibrium`).
        flows, times, tolls: of the links ``(K,)``; minutes.
        travel_time: sum of f t(f).
        revenue: sum of f toll.
        net_benefit: drivers' values and revenue.
        beckmann: Beckmann's objective, which the user equilibrium minimises as lambda and the tolls tend to 0.
    """

    equilibrium: Equilibrium
    flows: Array
    times: Array
    tolls: Array
    travel_time: float
    revenue: float
    net_benefit: float
    beckmann: float


class RoadTraffic(PopulationBOCMDP):
    """The drivers of a network, and a leader who sets tolls.

    Args:
        network: the roads and trips.
        objective: "travel_time" (minimised), "revenue", "net_benefit", or "mix".
        mix: weights of minus the travel time, the revenue and the net benefit, for "mix".
        tollable: the links that may be tolled, by number; "all".
        toll_bounds: least and largest toll, minutes; negative ones are subsidies.

    Raises:
        ModelError: the network makes no sense (`RoadNetwork.check`).
        OptionError: another argument out of range.

    Attributes:
        network, tollable, toll_bounds: as given; ``tollable`` as numbers.
        classes: the destinations, nodes ``(C,)``.
        n_trips: M.
        trips: from each node to each destination ``(C, N)``.
        slots: the link of each class, node and action ``(C or 1, N, A)``, -1 where there is none.
        no_road: minutes that an action without a road costs; whoever takes it stays where it is.
    """

    def __init__(
        self,
        network: RoadNetwork,
        objective: Objective = "travel_time",
        mix: Sequence[float] = (1.0, 0.0, 0.0),
        tollable: Literal["all"] | Sequence[int] = "all",
        toll_bounds: Sequence[float] = (0.0, 60.0),
    ):
        self.network = network.check()
        check_choice("objective", objective, (*OBJECTIVES, "mix"))
        mixed = check_array("mix", mix, (3,))
        self.weights: Array = mixed if objective == "mix" else np.array(OBJECTIVES[objective])
        self.tollable = self._check_tollable(tollable)
        low, high = check_array("toll_bounds", toll_bounds, (2,))
        if not low < high:
            raise OptionError(f"toll_bounds is {tuple(toll_bounds)}; expected the least toll and a larger one.")
        self.toll_bounds = (float(low), float(high))
        self.no_road = _NO_ROAD * max(1.0, float(network.free_flow_time.max()))
        self.classes: Indices = network.destinations()
        self.trips: Array = network.demand()[:, self.classes].T.copy()
        self.n_trips = float(self.trips.sum())
        self.slots, strays = self._make_slots()
        unused = np.setdiff1d(np.arange(network.n_links), self.slots)
        if unused.size:
            raise ModelError(f"{network.name}: {network.describe(int(unused[0]))} is on no way to a destination; drop it.")
        n = network.n_nodes
        here = np.arange(n)[None, :, None]
        succ = np.where(self.slots >= 0, network.head[self.slots], here)
        left = strays | (self.classes[:, None] == np.arange(n))  # nobody of the class acts there: any end will do
        arrives = (self.slots >= 0) & (network.head[self.slots] == self.classes[:, None, None])
        mass = self.trips.sum(1)
        arguments: dict[str, Any] = {
            "load": self._load(),
            "mass": mass,
            "transition": SuccessorTransitions(succ[..., None], torch.ones(*succ.shape, 1, dtype=torch.float64)),
            "initial": self.trips / mass[:, None],
            "termination": np.maximum(arrives, left[:, :, None]).astype(np.float64),
            "discount": 1.0,
        }
        self._slot_index = torch.from_numpy(np.where(self.slots >= 0, self.slots, network.n_links))
        self._trips = torch.from_numpy(self.trips)
        self._arguments = arguments
        d = len(self.tollable)
        super().__init__(
            reward=lambda x, loads: self._rewards(network.times(loads) + self.tolls(x)),
            objective=self._objective_of,
            leader_dim=d,
            leader_space=gym.spaces.Box(low, high, (d,), np.float64),
            **arguments,
        )

    def _check_tollable(self, tollable: Any) -> Indices:
        k = self.network.n_links
        if isinstance(tollable, str) and tollable == "all":
            return np.arange(k)
        array = None if isinstance(tollable, str) else as_array(tollable)
        links = np.zeros(0) if array is None or array.ndim != 1 else array
        if not links.size or (links != np.floor(links)).any() or links.min() < 0 or links.max() >= k:
            raise OptionError(f"tollable is {tollable!r}; expected 'all', or numbers of links in 0..{k - 1}.")
        if len(np.unique(links)) < len(links):
            raise OptionError(f"tollable is {tollable!r}; expected different links.")
        return links.astype(np.int64)

    def _make_slots(self) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """The links as actions ``(C or 1, N, A)``, and the nodes from which a class cannot arrive ``(C, N)``."""
        network = self.network
        order = np.argsort(network.tail, kind="stable")
        rank = np.arange(len(order)) - np.searchsorted(network.tail[order], network.tail[order])
        slots = np.full((network.n_nodes, int(rank.max()) + 1), -1, dtype=np.int64)
        slots[network.tail[order], rank] = order
        strays = np.stack([~network.reaching(int(destination)) for destination in self.classes])
        open_ = np.stack(
            [
                (network.passable[network.head] | (network.head == destination)) & ~stray[network.head]
                for destination, stray in zip(self.classes, strays, strict=True)
            ]
        )
        if open_.all():
            return slots[None], strays
        return np.where((slots >= 0) & open_[:, slots], slots, -1), strays

    def _load(self) -> sparse.csr_array:
        """b: every link is loaded by the actions that take it."""
        _, n, a = self.slots.shape
        every = self.slots.max(0).reshape(-1)  # a link has the same place in all classes
        pairs = np.flatnonzero(every >= 0)
        return sparse.csr_array((np.ones(len(pairs)), (every[pairs], pairs)), shape=(self.network.n_links, n * a))

    def _rewards(self, costs: Tensor) -> Tensor:
        """Minus the costs of links ``(K,)`` as rewards ``(C or 1, N, A)``."""
        return -torch.cat([costs, costs.new_full((1,), self.no_road)])[self._slot_index]

    def tolls(self, x: Tensor) -> Tensor:
        """The toll of every link ``(K,)``."""
        if len(x) == self.network.n_links and (self.tollable == np.arange(len(x))).all():
            return x
        return x.new_zeros(self.network.n_links).index_put((torch.from_numpy(self.tollable),), x)

    def _objective_of(self, x: Tensor, loads: Tensor, values: Tensor) -> Tensor:
        time, revenue, benefit = self.weights
        collected = (loads * self.tolls(x)).sum()
        total = revenue * collected - time * (loads * self.network.times(loads)).sum()
        return (total + benefit * ((self._trips * values).sum() + collected)) / self.n_trips

    def traffic(self, x: Any, regularization: float, **options: Any) -> Traffic:
        """What drivers do under tolls x ``(d,)``; options go to `equilibrium`.

        Raises:
            As `equilibrium`.
        """
        point = self._check_leader(x).detach()
        found = self.equilibrium(point, regularization, **options)
        flows, tolls = found.loads, self.tolls(point)
        times = self.network.times(flows)
        revenue = float((flows * tolls).sum())
        return Traffic(
            equilibrium=found,
            flows=flows.numpy(),
            times=times.numpy(),
            tolls=tolls.numpy().copy(),
            travel_time=float((flows * times).sum()),
            revenue=revenue,
            net_benefit=float((self._trips * found.value).sum()) + revenue,
            beckmann=self.network.beckmann(flows.numpy()),
        )

    def marginal_cost_tolls(self, regularization: float) -> Array:
        """f t'(f) of all links ``(K,)`` where drivers pay just that: the tolls of the largest net benefit, bounds aside.

        They are found as the equilibrium of drivers to whom links cost t + f t'.
        """
        network = self.network
        payers = PopulationBOCMDP(
            reward=lambda x, loads: self._rewards(network.times(loads) + network.external_costs(loads)) + 0.0 * x.sum(),
            objective=lambda x, loads, values: loads.sum() + 0.0 * x.sum(),
            leader_dim=1,
            **self._arguments,
        )
        loads = payers.equilibrium([0.0], regularization).loads
        tolls: Array = network.external_costs(loads).numpy()
        return tolls
