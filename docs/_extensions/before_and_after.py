"""Pictures of what a leader changes: each environment before and after, and the front page's three. Made once: make pictures.

    python docs/_extensions/before_and_after.py [ENVIRONMENT ...]

They lie in ``docs/images/before_and_after`` and ``docs/images/front``. "Before" is the environment's usual start (in Four-Rooms:
no penalties), "after" the best x known (`benchmark`), or what a short ascent along the exact hypergradient finds; an episode
shown is the optimal follower's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

import bocmdp_gym
import followers
import leaders
from bocmdp_gym.envs.income_tax_picture import draw_rates
from bocmdp_gym.envs.road_tolls_map import draw_map
from bocmdp_gym.pictures import Canvas
from bocmdp_gym.registration import ENVIRONMENTS
from leaders.settings.names import command_name

Array = npt.NDArray[np.float64]
IMAGES = Path(__file__).parents[1] / "images"
_TITLE = 30  # pixels above a frame


class Case(NamedTuple):
    """The setting in which an environment is shown."""

    regularization: float
    keywords: dict[str, Any] = {}
    steps: int = 0  # of the episode before the frame is taken
    ascent: tuple[int, int, float] | None = None  # starts, iterations and rate of Adam; None: the x of `benchmark`
    before: Callable[[Any], Array] | None = None  # None: `initial_leader`


def all_unused(core: Any) -> Array:
    """Four-Rooms without penalties: the whole budget on the entry that costs nobody anything."""
    x = np.zeros(core.leader_space.shape)
    x[-1] = 100.0
    return x


CASES: dict[str, Case] = {
    "bocmdp/FourRooms-v0": Case(0.001, {"slip_probability": 0.44, "penalty_cost": 1.0}, ascent=(32, 400, 0.1), before=all_unused),
    "bocmdp/DynamicMechanism-v0": Case(0.01),
    "bocmdp/IncomeTax-v0": Case(0.01),
    "bocmdp/LeaderActs-v0": Case(0.05),
    "bocmdp/MetaRL-v0": Case(0.1, ascent=(1, 300, 0.1)),
    "bocmdp/PrincipalAgent-v0": Case(0.02, ascent=(4, 300, 0.1)),
    "bocmdp/RandomMDP-v0": Case(0.1, ascent=(1, 100, 0.1)),
    "bocmdp/RoadTolls-v0": Case(1.0, {"objective": "net_benefit"}),
    "bocmdp/TaxDesign-v0": Case(0.1, steps=60),
    "bocmdp/Inventory-v0": Case(0.1, steps=38),
    "bocmdp/Battery-v0": Case(0.1, steps=38),
}


def solved(env: gym.Env[Any, Any], case: Case) -> tuple[Array, Array]:
    """x before and after."""
    core: Any = bocmdp_gym.configurable(env)
    before = core.initial_leader(np.random.default_rng(0)) if case.before is None else case.before(core)
    if case.ascent is None:
        known = core.benchmark()
        return before, known.x
    starts, iterations, rate = case.ascent
    follower = followers.SoftPolicyIteration(case.regularization)
    found = leaders.multistart(
        env, leaders.ExactGradient(rate, optimizer="Adam"), follower, iterations,
        starts=starts, rounds=1 if starts == 1 else 3, contexts="all", progress=False,
    )  # fmt: skip
    return before, np.asarray(found.best.x)


def frame(env: gym.Env[Any, Any], x: Array, case: Case) -> npt.NDArray[np.uint8]:
    """What ``render`` shows after some steps of the optimal follower in context 0."""
    rng = np.random.default_rng(0)
    policy = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(case.regularization)).respond(x, 0, rng)
    observation, _ = env.reset(seed=0, options={"leader": x, "context": 0})
    for _ in range(case.steps):
        observation, *_ = env.step(policy.act(observation, rng))
    shown: Any = env.render()
    return np.asarray(shown, dtype=np.uint8)


def titled(picture: npt.NDArray[np.uint8], title: str) -> npt.NDArray[np.uint8]:
    """A frame below its title."""
    canvas = Canvas(picture.shape[1], _TITLE)
    canvas.text((picture.shape[1] / 2, _TITLE / 2), title, size=15)
    return np.concatenate([canvas.array(), picture])


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as an array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def before_and_after(env_id: str) -> npt.NDArray[np.uint8]:
    """The picture of one environment."""
    case = CASES[env_id]
    env = gym.make(env_id, render_mode="rgb_array", **case.keywords)
    core: Any = bocmdp_gym.configurable(env)
    xs = solved(env, case)
    values = [float(core.model.leader_return(x, case.regularization)) for x in xs]
    titles = [f"{when}: leader's return {value:.4g}" for when, value in zip(("before", "after"), values, strict=True)]
    print(env_id, *titles, flush=True)
    if command_name(env_id) in FRONT:
        save(FRONT[command_name(env_id)](core, xs, case), IMAGES / "front" / f"{stem(env_id)}.png")
    if env_id in ("bocmdp/RoadTolls-v0", "bocmdp/IncomeTax-v0"):
        figure = core.result_figure(xs[1], None)
        return pixels(figure)
    if env_id == "bocmdp/FourRooms-v0":
        figure = Figure(figsize=(9.6, 5.1), layout="constrained")
        for ax, x, title in zip(figure.subplots(1, 2), xs, titles, strict=True):
            core.draw_result(ax, x, core.model.solve(x, case.regularization).policy.numpy())
            ax.set_title(title)
        return pixels(figure)
    frames = [titled(frame(env, x, case), title) for x, title in zip(xs, titles, strict=True)]
    return np.concatenate(frames, axis=0 if frames[0].shape[1] > 1.8 * frames[0].shape[0] else 1)


def front_rooms(core: Any, xs: tuple[Array, Array], case: Case) -> Figure:
    """Penalties and the most likely paths, before above after."""
    figure, axes = _pair()
    for ax, x, title in zip(axes, xs, ("no penalties", "the leader's penalties"), strict=True):
        core.draw_result(ax, x, core.model.solve(x, case.regularization).policy.numpy())
        ax.set_title(title, fontsize=15)
    return figure


def front_roads(core: Any, xs: tuple[Array, Array], case: Case) -> Figure:
    """Flows and delays, before above after."""
    del case
    figure, axes = _pair()
    traffics = [core.traffic(x) for x in xs]
    delay, largest = core.delays(traffics[0]).max(), max(traffic.flows.max() for traffic in traffics)
    for ax, traffic, title in zip(axes, traffics, ("no tolls", "the leader's tolls"), strict=True):
        draw_map(ax, core.network, traffic.flows, core.delays(traffic), "YlOrRd", (0.0, delay), largest)
        ax.set_title(f"{title}: {traffic.travel_time / core.population.n_trips:.1f} minutes each", fontsize=15)
    return figure


def front_taxes(core: Any, xs: tuple[Array, Array], case: Case) -> Figure:
    """Marginal rates above what each skill then has."""
    del case
    figure, (rates, money) = _pair()
    draw_rates(rates, core.population, {"US federal, 2018": core.us_federal(), "the leader's": xs[1]})
    rates.set_title("marginal tax rates", fontsize=15)
    before, after = core.taxation(core.free_market()), core.taxation(xs[1])
    money.loglog(core.population.skills, before.consumption, "o:", label="without taxes")
    money.loglog(core.population.skills, after.consumption, "o-", label="with the leader's")
    money.set_xlabel("skill")
    money.set_title("what people have", fontsize=15)
    for ax in (rates, money):
        ax.legend(frameon=False, fontsize=12)
        ax.tick_params(labelsize=11)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
    return figure


FRONT = {"four-rooms": front_rooms, "road-tolls": front_roads, "income-tax": front_taxes}


def _pair() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 9.0), layout="constrained", dpi=100)
    return figure, figure.subplots(2, 1)


def stem(env_id: str) -> str:
    """The file name of an environment's pictures: that of its page."""
    entry = next(entry for entry in ENVIRONMENTS if entry.id == env_id)
    return entry.entry_point.split(":")[0].rsplit(".", 1)[1]


def save(picture: npt.NDArray[np.uint8] | Figure, path: Path) -> None:
    """Write a small PNG: 128 colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(picture) if isinstance(picture, Figure) else picture)
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    for env_id in CASES:
        if command_name(env_id) in sys.argv[1:] or len(sys.argv) == 1:
            save(before_and_after(env_id), IMAGES / "before_and_after" / f"{stem(env_id)}.png")
