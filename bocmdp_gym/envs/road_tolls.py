r"""Tolls on the roads of a city, and drivers who meet on them (`bocmdp_gym.traffic` has the mathematics)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.envs.population_env import PopulationEnv
from bocmdp_gym.envs.road_tolls_map import draw_map, draw_picture, link_outlines
from bocmdp_gym.errors import DiscountError, OptionError
from bocmdp_gym.options import check_regularization
from bocmdp_gym.population import AmongOthers
from bocmdp_gym.road_network import RoadNetwork, braess, grid
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.tntp import anaheim, read_network, sioux_falls
from bocmdp_gym.traffic import Objective, RoadTraffic, Traffic
from bocmdp_gym.validation import check_discount


class RoadTolls(PopulationEnv):
    r"""Tolls on the roads of a city: every driver answers the tolls and the jams that all drivers make.

    ## Description
    Everybody drives from an origin to a destination and takes, at each crossing, one of its roads. A road takes longer the more
    drive on it, so that drivers answer each other until times and flows agree: an equilibrium of a population
    (`bocmdp_gym.PopulationBOCMDP`), solved exactly for every x. The leader sets tolls, and wants short travel times, revenue, or
    the largest net benefit of all. An episode is the journey of one driver among everyone else's flows.

    ## Leader parameter
    x: the tolls of the links in ``tollable``, in minutes' worth, within ``toll_bounds``. `initial_leader` is no tolls, or those
    nearest to it.

    ## Context
    ``Discrete(destinations)``: where the driver goes, with the shares of the trips that go there.

    ## Action space
    ``Discrete(A)``: a link of the node, A the most links that leave one. An action beyond the node's last link, or into a zone
    that may not be passed through, is no road: the driver stays, and loses more time than any journey takes.

    ## Observation space
    ``Discrete(N)``: the node. The destination is not observed.

    ## Rewards
    Follower: minus the minutes that the link takes at everyone's flows, and its toll. Leader: its objective, in minutes per
    driver, when the driver arrives; in every context the same, as it is that of all drivers together. ``info`` has the ``link``
    taken (-1: none), its ``time`` and its ``toll`` (not in the compiled vector environment).

    ## Episode start and end
    Starts at an origin, drawn by the trips to the destination; terminates on arrival; truncated after ``horizon`` links.

    ## Arguments
    network: "grid" (a seeded city), "braess", "sioux-falls" (fetched once, with pooch), "anaheim" (from the data folder), or the
    path of a NAME_net.tntp with its NAME_trips.tntp beside it.
    objective: "travel_time" (all minutes driven, minimised), "revenue", "net_benefit" (the drivers' values and the revenue), or
    "mix"; per driver.
    mix: weights of minus the travel time, the revenue and the net benefit, where the objective is "mix".
    tollable: "all" links, or those with these numbers, from 0 in the network's order.
    toll_bounds: the least and the largest toll, minutes; negative ones are subsidies.
    regularization: the drivers' lambda in minutes, everybody's: a follower that has one must have this one.
    size: crossings along each side of the grid city.
    seed: seed of the grid city's lengths and trips (``reset(seed=...)`` seeds the episodes).
    horizon: links until truncation.
    discount: must be 1, as flows are all that passes.
    leader_discount: how the leader's objective is spread over a journey, whose payments add up to it at any value; None: 1.
    render_mode: "rgb_array" or "human".

    Raises:
        DataError: a network's files are missing or damaged. ModelError: a network that makes no sense.
        OptionError, DiscountError, RegularizationError: another argument out of range.

    ## Version history
    v0: first version.
    """

    def __init__(
        self,
        network: str = "grid",
        objective: Objective = "travel_time",
        mix: Sequence[float] = (1.0, 0.0, 0.0),
        tollable: Literal["all"] | Sequence[int] = "all",
        toll_bounds: Sequence[float] = (0.0, 60.0),
        regularization: float = 1.0,
        size: int = 4,
        seed: int = 0,
        horizon: int = 200,
        discount: float = 1.0,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        if check_discount(discount) != 1.0:
            raise DiscountError(
                f"discount is {discount}; expected 1: the flow on a road is all that passes, not a discounted part."
            )
        traffic = RoadTraffic(_network(network, size, seed), objective, mix, tollable, toll_bounds)
        model = AmongOthers(traffic, check_regularization(regularization), leader_discount)
        self.objective = objective
        super().__init__(model, horizon, render_mode)

    @property
    def network(self) -> RoadNetwork:
        """The roads and the trips."""
        return self.population.network

    def traffic(self, x: npt.ArrayLike) -> Traffic:
        """What all drivers do under tolls x ``(d,)``: flows, times, and their sums over drivers."""
        traffic: Traffic = self.population.traffic(x, self.regularization)
        return traffic

    def _met(self, x: npt.NDArray[np.float64]) -> Traffic:
        return self.traffic(x)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a link. ``info`` has the ``link``, its ``time`` and its ``toll``, and what `TabularEnv.step` has.

        Raises:
            ActionError, ResetError: as `TabularEnv.step`.
        """
        node = self._state
        observation, reward, terminated, truncated, info = super().step(action)
        slots = self.population.slots
        link = int(slots[0 if len(slots) == 1 else info["context"], node, int(action)])
        toll = self._tolls[link] if link >= 0 else 0.0
        info |= {"link": link, "time": -reward - toll, "toll": toll}
        return observation, reward, terminated, truncated, info

    def _configured(self) -> None:
        super()._configured()
        self._tolls = self.population.tolls(torch.tensor(self._episode_leader)).tolist()

    def benchmark(self, regularization: float | None = None) -> Benchmark | None:
        """The largest net benefit, that of marginal-cost tolls, where these are within bounds; None for other objectives."""
        regularization = self.regularization if regularization is None else regularization
        if self.objective != "net_benefit" or len(self.population.tollable) < self.network.n_links or regularization <= 0.0:
            return None
        tolls = self.population.marginal_cost_tolls(regularization)
        low, high = self.population.toll_bounds
        if tolls.min() < low or tolls.max() > high:
            return None
        return Benchmark(
            value=float(self.population.leader_return(tolls, regularization)),
            objective="net benefit per driver, maximised",
            source="marginal-cost tolls, f t'(f) on every link, under which each driver pays what it costs the others",
            regularization=regularization,
            is_optimum=True,
            x=tolls,
        )

    def picture(self) -> npt.NDArray[np.uint8]:
        """The map: roads as wide as their flows and coloured by their delay, the driver, and where it goes."""
        traffic = self._in_force()
        goal = None if self._episode_context is None else int(self.population.classes[self._episode_context])
        return draw_picture(self.network, traffic.flows, traffic.times, self._state, goal)

    def leader_outlines(self) -> list[npt.NDArray[np.float64]]:
        """The links with a toll, each direction to the right of the other."""
        return link_outlines(self.network, self.population.tollable)

    result_name = "traffic_map"

    def result_figure(self, x: npt.ArrayLike, policies: npt.NDArray[np.float64]) -> Any:
        """A matplotlib figure: the map without tolls (or with those nearest to none) and under x, and the tolls."""
        del policies
        from matplotlib.figure import Figure

        before, after = self.traffic(self.initial_leader(np.random.default_rng(0))), self.traffic(x)
        figure = Figure(figsize=(16.0, 5.6), layout="constrained")
        panels = figure.subplots(1, 3)
        largest, delay = max(before.flows.max(), after.flows.max()), self.delays(before).max()
        for panel, traffic, title in zip(panels, (before, after), ("before", "after"), strict=False):
            shown = draw_map(panel, self.network, traffic.flows, self.delays(traffic), "YlOrRd", (0.0, delay), largest)
            panel.set_title(f"{title}: {traffic.travel_time / self.population.n_trips:.2f} minutes per driver")
        figure.colorbar(shown, ax=panels[:2], label="delay, minutes above free flow", shrink=0.85)
        top = max(float(np.abs(after.tolls).max()), 1e-9)
        shown = draw_map(panels[2], self.network, after.flows, after.tolls, "PuBuGn", (min(0.0, after.tolls.min()), top), largest)
        panels[2].set_title(f"tolls: {after.revenue / self.population.n_trips:.2f} minutes' worth per driver")
        figure.colorbar(shown, ax=panels[2], label="toll, minutes", shrink=0.85)
        figure.suptitle(f"{self.network.name}: width is flow, up to {largest:,.0f}")
        return figure

    def delays(self, traffic: Traffic) -> npt.NDArray[np.float64]:
        """Minutes above free flow ``(K,)``."""
        return np.maximum(traffic.times - self.network.free_flow_time, 0.0)


def _network(name: str, size: int, seed: int) -> RoadNetwork:
    """A network by its name, or from files.

    Raises:
        OptionError: neither.
    """
    if not isinstance(name, str):
        raise OptionError(f"network is {name!r}; expected a name, or the path of a NAME_net.tntp.")
    if name == "grid":
        return grid(size, seed)
    made = {"braess": braess, "sioux-falls": sioux_falls, "anaheim": anaheim}
    if name in made:
        return made[name]()
    if name.endswith(".tntp"):
        return read_network(name)
    raise OptionError(
        f"network is {name!r}; expected 'grid', 'braess', 'sioux-falls', 'anaheim', or the path of a NAME_net.tntp with its "
        "NAME_trips.tntp beside it."
    )


def road_tolls_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `RoadTolls` in one compiled environment; keywords as for `RoadTolls`."""
    return TabularVectorEnv(RoadTolls(**kwargs), num_envs, autoreset_mode)
