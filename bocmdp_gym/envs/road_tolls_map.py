"""Maps of road traffic: links as wide as their flows, coloured by delay or toll. Each direction keeps to the right."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.pictures import AGENT, INK, PALETTE, Canvas, blend
from bocmdp_gym.road_network import Array, Indices, RoadNetwork

_WIDEST = 9.0  # line of the largest flow, in points or pixels


def _placed(network: RoadNetwork) -> Array:
    """Positions of the nodes, the longer side of the map from 0 to 1."""
    low = network.position.min(0)
    span = max(float((network.position.max(0) - low).max()), 1e-12)
    placed: Array = (network.position - low) / span
    return placed


def _ends(network: RoadNetwork, places: Array, shift: float) -> tuple[Array, Array]:
    """Where the links' lines start and end ``(K, 2)``, moved to the right of their direction."""
    start, end = places[network.tail], places[network.head]
    along = end - start
    length = np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    right = np.stack([along[:, 1], -along[:, 0]], -1) / length * shift
    return start + right, end + right


def link_outlines(network: RoadNetwork, links: Indices) -> list[Array]:
    """The corners ``(4, 2)`` of bars in the place of some links, on a map with sides of at most 1."""
    spacing = 1.0 / max(np.sqrt(network.n_nodes), 2.0)
    places = _placed(network)
    near, far = (_ends(network, places, shift * spacing) for shift in (0.02, 0.1))
    return [np.stack([near[0][link], near[1][link], far[1][link], far[0][link]]) for link in links]


def draw_map(
    axes: Any, network: RoadNetwork, flows: Array, colours: Array, palette: str, limits: tuple[float, float], largest: float
) -> Any:
    """Draw a map into matplotlib axes: width by flow, colour by ``colours`` ``(K,)``. Returns what a colour bar needs."""
    from matplotlib.collections import LineCollection

    places = _placed(network)
    spacing = 1.0 / max(np.sqrt(network.n_nodes), 2.0)
    start, end = _ends(network, places, 0.05 * spacing)
    thin = min(1.0, 8.0 * spacing)
    segments: Any = np.stack([start, end], 1)
    lines = LineCollection(segments, cmap=palette, linewidths=thin * (0.6 + _WIDEST * flows / largest), zorder=1)
    lines.set_array(colours)
    lines.set_clim(*limits)
    axes.add_collection(lines)
    axes.scatter(*places.T, s=120 * spacing, color="white", edgecolors="#282c34", linewidths=0.8, zorder=2)
    if network.n_nodes <= 40:
        for node, place in enumerate(places):
            axes.annotate(str(node + 1), place, xytext=(5, 5), textcoords="offset points", fontsize=7, color="#282c34", zorder=3)
    axes.set_facecolor("#dde1e4")
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.margins(0.08)
    return lines


def draw_picture(network: RoadNetwork, flows: Array, times: Array, node: int, goal: int | None) -> npt.NDArray[np.uint8]:
    """The map in pixels: colour by delay relative to free flow, a disc for the driver, G for where it goes."""
    size, margin = 560, 46
    canvas = Canvas(size, size)
    places = _placed(network)
    span = places.max(0)
    middle = (1.0 - span) / 2.0
    places = margin + (places + middle) * (size - 2 * margin)
    places[:, 1] = size - places[:, 1]
    start, end = _ends(network, places * np.array([1.0, -1.0]), 3.0)
    slow = np.clip((times / np.maximum(network.free_flow_time, 1e-9) - 1.0) / 1.0, 0.0, 1.0)
    for link in np.argsort(flows):
        colour = blend((120, 160, 130), (205, 50, 40), slow[link])
        width = 1.0 + _WIDEST * flows[link] / max(float(flows.max()), 1e-9)
        canvas.line(start[link] * [1.0, -1.0], end[link] * [1.0, -1.0], colour, width)
    radius = float(np.clip(60.0 / np.sqrt(network.n_nodes), 3.0, 11.0))
    for place in places:
        canvas.disc(place, radius, (255, 255, 255), INK, 1.0)
    if goal is not None:
        canvas.disc(places[goal], 1.3 * radius, PALETTE[1], INK, 1.5)
        canvas.text(places[goal], "G", size=1.6 * radius, colour=(255, 255, 255))
    canvas.disc(places[node], 1.1 * radius, AGENT, INK, 1.5)
    canvas.text((8, 6), "width: flow   green to red: time up to twice free flow   blue: driver", anchor="la")
    return canvas.array()
