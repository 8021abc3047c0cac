"""Recipes: every file of ``docs/recipes`` run with several seeds, and the leader's return before and after.

Before is x where the run starts, after is x where it ends. A fresh follower answers each, with a seed that no run has used, and
fresh episodes are played; over seeds, means and standard errors are stored, of the gain too. The picture of a recipe shows an
episode before (left) and after (right).

Run it with ``python -m benchmarks.recipes`` (names of recipes limit it to those, and what is stored of others stays); results go
to ``benchmarks/results/recipes.json`` and ``docs/images/recipes``.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from PIL import Image

import leaders
from benchmarks.common import RESULTS, store
from followers import TrajectoryOracle

ROOT = Path(__file__).parents[1]
FOLDER, PICTURES = ROOT / "docs" / "recipes", ROOT / "docs" / "images" / "recipes"
SEEDS = 3
#: Steps of the fresh episodes that judge an answer, at least; where an episode is a hand of cards, luck takes longer to settle.
JUDGED_STEPS, MORE = 2_000, {"blackjack": 100_000}
#: Answers that are judged are seeded from here on.
FIRST_EVALUATION = 1_000_000
#: Frames of a picture, its height in pixels, and milliseconds per frame.
FRAMES, HEIGHT, PAUSE = 24, 130, 160


def names() -> list[str]:
    """The recipes, by the names of their files."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> dict[str, Any]:
    """What a recipe makes, anew: ``world``, ``env``, ``follower``, ``leader`` and ``iterations``."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def attempt(name: str, seed: int, iterations: int | None = None, judged_steps: int | None = None) -> dict[str, Any]:
    """One run of a recipe: x and the leader's return before and after.

    Args:
        name: of the recipe.
        seed: of the run; answers before and after share another.
        iterations: how many; the recipe's own number if None.
        judged_steps: of fresh episodes, before and after each, at least; as above if None.
    """
    judged_steps = MORE.get(name, JUDGED_STEPS) if judged_steps is None else judged_steps
    began, recipe = process_time(), load(name)
    env, follower = recipe["env"], recipe["follower"]
    iterations = recipe["iterations"] if iterations is None else iterations
    result = leaders.optimize(env, recipe["leader"], follower, iterations, seed=seed, progress=False)
    row: dict[str, Any] = {"seed": seed, "x0": result.x0.tolist(), "x": result.x.tolist()}
    for when, x in (("before", result.x0), ("after", result.x)):
        judged = leaders.evaluate_policy(env, follower, x, env_steps=judged_steps, seed=FIRST_EVALUATION + seed)
        exact = judged.exact_leader_return
        row[when] = judged.leader_return.mean if exact is None else exact
    return row | {"exact": exact is not None, "env_steps": result.env_steps, "cpu_seconds": round(process_time() - began, 1)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard errors over seeds of the leader's returns and of the gain."""
    before, after = (np.array([row[when] for row in rows]) for when in ("before", "after"))
    found = {}
    for what, values in (("before", before), ("after", after), ("gain", after - before)):
        error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        found[what] = {"mean": float(values.mean()), "standard_error": error}
    return found


def picture(name: str, x0: list[float], x: list[float]) -> None:
    """Store an animation of an episode before, on the left, and one after."""
    recipe, sides = load(name), []
    for leader in (x0, x):
        frames = episode(recipe, torch.tensor(leader, dtype=torch.float64))
        sides.append([frames[i] for i in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int)])
    length = max(map(len, sides))
    both = [np.hstack([side[min(i, len(side) - 1)] for side in sides]) for i in range(length)]
    first, *rest = [Image.fromarray(frame).quantize(32, dither=Image.Dither.NONE) for frame in both]
    PICTURES.mkdir(parents=True, exist_ok=True)
    first.save(PICTURES / f"{name}.gif", save_all=True, append_images=rest, duration=PAUSE, loop=0, optimize=True)


def episode(recipe: dict[str, Any], x: torch.Tensor, steps: int = 200) -> list[np.ndarray[Any, Any]]:
    """Frames of the follower's answer to x, played in the bare world that the recipe looks at."""
    rng, world = np.random.default_rng(0), recipe["world"]
    policy = TrajectoryOracle(recipe["env"], recipe["follower"]).respond(x, 0, rng).begin(recipe["env"])
    observation, _ = world.reset(seed=0)
    frames, ended = [_small(world.render())], False
    while not ended and len(frames) <= steps:
        observation, _, terminated, truncated, _ = world.step(policy.act(observation, rng))
        frames.append(_small(world.render()))
        ended = terminated or truncated
    return frames


def _small(frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    image = Image.fromarray(frame)
    return np.asarray(image.resize((HEIGHT * image.width // image.height, HEIGHT)))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names())
    arguments = parser.parse_args()
    del sys.argv[1:]  # stored is the command that makes all of them
    path = RESULTS / "recipes.json"
    for name in arguments.names:
        rows = [attempt(name, seed) for seed in range(SEEDS)]
        stored = json.loads(path.read_text())["results"] if path.exists() else {}
        stored[name] = summary(rows) | {"runs": rows}
        store("recipes", {one: stored[one] for one in names() if one in stored})
        picture(name, rows[0]["x0"], rows[0]["x"])
        print(name, json.dumps(summary(rows)), flush=True)


if __name__ == "__main__":
    main()
