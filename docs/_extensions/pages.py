"""Pages that are made from the library itself, before Sphinx reads the rest: environments, leaders, followers, metrics, API.

They are written to ``docs/_generated``; whatever they show (pictures, known optima, logged metrics) is computed while they are
made, so they cannot disagree with the code. A page says what it does not know how to say by failing the build.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from before_and_after import CASES
from notebook_outputs import NOTEBOOKS
from PIL import Image
from results import table, write_results

import bocmdp_gym
import followers
import leaders
import leaders.gradients
from bocmdp_gym.docstrings import argument_groups
from bocmdp_gym.registration import ENVIRONMENTS, Entry
from leaders.gradients.registry import ESTIMATORS
from leaders.history import COLUMNS
from leaders.settings.names import command_name

#: The packages and modules whose ``__all__`` is the public surface; each has an API page.
PUBLIC = (
    "bocmdp_gym",
    "bocmdp_gym.errors",
    "bocmdp_gym.wrappers",
    "bocmdp_gym.envs",
    "bocmdp_gym.games",
    "bocmdp_gym.incentives",
    "bocmdp_gym.inequality",
    "bocmdp_gym.deprecation",
    "followers",
    "leaders",
    "leaders.gradients",
    "leaders.objectives",
)
#: Settings whose known optimum is shown: keywords of gym.make, keywords of `benchmark` ("method": another method to ask).
OPTIMA: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "bocmdp/FourRooms-v0": [
        ({"slip_probability": 0.44, "penalty_cost": beta}, {"regularization": lam})
        for lam in (0.001, 0.003, 0.005)
        for beta in (1.0, 3.0, 5.0)
    ],
    "bocmdp/MetaRL-v0": [
        ({"rewards": [[1, 0], [0, 1]], "task_probabilities": [0.7, 0.3], "kl_weight": 1.0}, asked)
        for asked in ({}, {"method": "value_benchmark"})
    ],
    "bocmdp/PrincipalAgent-v0": [({"budget_on": "sum"}, {}), ({"budget_on": "paid", "n_agents": 1}, {})],
    "bocmdp/DynamicMechanism-v0": [({"objective": "revenue"}, {}), ({"objective": "welfare"}, {})],
    "bocmdp/RoadTolls-v0": [({"objective": "net_benefit"}, {}), ({"objective": "net_benefit"}, {"regularization": 0.3})],
    "bocmdp/TaxDesign-v0": [({}, {"regularization": lam}) for lam in (0.1, 0.2, 0.3)],
    "bocmdp/IncomeTax-v0": [
        ({"objective": objective}, {}) for objective in ("welfare", "equality_times_productivity", "rawls", "revenue")
    ],
    "bocmdp/Inventory-v0": [({}, {"regularization": lam}) for lam in (0.05, 0.1, 0.2)],
    "bocmdp/Battery-v0": [({}, {"regularization": lam}) for lam in (0.05, 0.1, 0.2)],
    "bocmdp/BuildingControl-v0": [({}, {})],
}
#: Random steps before the picture is taken, and how far x is from the environment's usual start where no
#: best x is known.
PICTURES: dict[str, tuple[int, float]] = {
    "bocmdp/FourRooms-v0": (2, 1.5),
    "bocmdp/MetaRL-v0": (2, 1.5),
    "bocmdp/TaxDesign-v0": (60, 0.0),
    "bocmdp/Inventory-v0": (30, 0.0),
    "bocmdp/Battery-v0": (30, 0.0),
    "bocmdp/BuildingControl-v0": (60, 1.5),
}

#: Keywords that make a leader's run short; it is only asked what it logs.
SHORT: dict[str, dict[str, Any]] = {
    "auto": {"env_steps": 400},
    "monte_carlo": {"env_steps": 400, "error_groups": 2},
    "geometric": {"samples": 400, "error_groups": 2},
    "critic": {"env_steps": 800},
    "multilevel": {"samples": 100, "levels": 4, "runs": 2},
    "pooled": {"env_steps": 400},
    "td": {"env_steps": 100},
}
#: Leaders besides HPGD, each with the estimator that has its mathematics, and a short one to ask what it logs.
LEADERS: dict[str, tuple[type, Callable[[], leaders.Leader]]] = {
    "ExactGradient": (leaders.gradients.ExactEstimator, leaders.ExactGradient),
    "AMD": (leaders.gradients.AdaptiveModelDesignEstimator, partial(leaders.AMD, sweeps=10)),
    "FirstOrder": (
        leaders.gradients.FirstOrderEstimator,
        partial(leaders.FirstOrder, env_steps=400, error_groups=2),
    ),
    "ZeroOrder": (leaders.gradients.ZeroOrderEstimator, partial(leaders.ZeroOrder, directions=2)),
}
#: Small followers to ask what they log; those that are not here need more than a small tabular problem.
FOLLOWERS: dict[str, Callable[[], followers.Follower]] = {
    "SoftPolicyIteration": partial(followers.SoftPolicyIteration, 0.1),
    "SoftValueIteration": partial(followers.SoftValueIteration, 0.1),
    "NaturalPolicyGradient": partial(followers.NaturalPolicyGradient, 0.1),
    "LinearProgramming": followers.LinearProgramming,
    "SoftQLearning": partial(followers.SoftQLearning, 0.1, iterations=1000),
    "VanillaPolicyGradient": partial(followers.VanillaPolicyGradient, 0.1, iterations=100),
    "SB3Follower": partial(followers.SB3Follower, "PPO", 64, n_steps=64, batch_size=64, n_epochs=1),
    "SoftDQNFollower": partial(followers.SoftDQNFollower, 0.1, 64, learning_starts=32),
    "CallableFollower": partial(followers.CallableFollower, lambda observation: 0, estimate_steps=400),
}


def environment_page(entry: Entry, out: Path) -> str:
    """Write one environment's page and picture. Returns its place in the gallery."""
    module_name, class_name = entry.entry_point.split(":")
    name, kind = module_name.rsplit(".", 1)[1], getattr(importlib.import_module(module_name), class_name)
    env = gym.make(entry.id, render_mode="rgb_array")
    core = bocmdp_gym.configurable(env)
    Image.fromarray(picture(env, core, entry.id)).save(out / f"{name}.png")
    facts = {
        "made by": f'`gym.make("{entry.id}")`',
        "many at once": f'`gym.make_vec("{entry.id}", num_envs=64)`' + ("" if entry.vector_entry_point else " (copies)"),
        "on the command line": f"`python -m leaders.train {command_name(entry.id)}`",
        "x": f"`{core.leader_space}`",
        "contexts": f"`{core.context_space}`",
        "actions": f"`{env.action_space}`",
        "observations": f"`{env.observation_space}`",
        "follower's and leader's discount": f"{core.discount}, {core.leader_discount}",
        "render modes": ", ".join(f"`{mode}`" for mode in kind.metadata["render_modes"]),
    }
    lines = [
        f"# {class_name}",
        "",
        *shown(entry.id, name, class_name),
        *markdown(kind),
        "",
        "## Known optimum",
        "",
        *optimum(entry.id, kind),
        "",
        "## Defaults",
        "",
        *table(("", "at the default arguments"), facts.items()),
        "",
        *table(("argument", "default"), defaults(kind)),
        "",
        "## The module",
        "",
        "```{eval-rst}",
        f".. automodule:: {module_name}",
        "   :no-members:",
        "",
        f".. autoclass:: {module_name}.{class_name}",
        "   :members:",
        "   :exclude-members: step, reset, render, metadata",
        "   :class-doc-from: init",
        "```",
    ]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    env.close()
    first, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("\n")
    return card(f"/_generated/environments/{name}", class_name, f"/_generated/environments/{name}.png", first)


def shown(env_id: str, name: str, class_name: str) -> Iterable[str]:
    """What a leader changes, where `before_and_after` draws it, else what ``render`` shows."""
    if (case := CASES.get(env_id)) is None:
        yield from (f"![{class_name}]({name}.png)", "")
        return
    setting = ", ".join([f"λ = {case.regularization:g}", *(f"`{k}={v!r}`" for k, v in case.keywords.items())])
    yield from (f"![{class_name}, before and after](/images/before_and_after/{name}.png)", "")
    yield from (f"*Before and after a leader has chosen x ({setting}), drawn by `make pictures`.*", "")


def card(page: str, title: str, image: str, text: str) -> str:
    """One picture of a gallery, with its link and a line of text."""
    return f":::{{container}} card\n[![{title}]({image})]({page}.md)\n\n**[{title}]({page}.md)**\n\n{text}\n:::\n"


def picture(env: gym.Env[Any, Any], core: Any, env_id: str) -> Any:
    """What ``render`` shows a few random steps into an episode, under the best x known where there is one."""
    steps, distance = PICTURES.get(env_id, (1, 0.0))
    rng = np.random.default_rng(0)
    known, x = core.benchmark(), core.initial_leader(rng)
    x = x + distance * rng.standard_normal(x.shape) if known is None or known.x is None else known.x
    env.reset(seed=0, options={"leader": x, "context": 0})
    env.action_space.seed(0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env.render()


def markdown(kind: type) -> Iterable[str]:
    """An environment's docstring, whose arguments and errors become lists."""
    text = inspect.cleandoc(kind.__doc__ or "").replace("\nRaises:\n", "\n## Errors\n")
    for section in re.split(r"^(?=## )", text, flags=re.M):
        heading, _, body = section.partition("\n")
        if heading not in ("## Arguments", "## Errors"):
            yield section
            continue
        yield f"{heading}\n"
        if heading == "## Arguments":
            groups = argument_groups(kind)
        else:
            pieces = re.split(r"(?:^|\s+)(\w+Error(?:, \w+Error)*): ", " ".join(body.split()))
            groups = [(tuple(one.split(", ")), text) for one, text in zip(pieces[1::2], pieces[2::2], strict=True)]
        for names, meaning in groups:
            yield "- " + ", ".join(f"`{name}`" for name in names) + f": {meaning}"
        yield ""


def defaults(kind: type) -> Iterable[tuple[str, str]]:
    """Every argument of an environment with its default."""
    for parameter in inspect.signature(kind).parameters.values():
        shown = repr(parameter.default)
        yield f"`{parameter.name}`", f"`{shown}`" if "\n" not in parameter.name + shown and "\\n" not in shown else "a drawing"


def optimum(env_id: str, kind: type) -> Iterable[str]:
    """The best value known for a leader, as `benchmark` states it."""
    rows, sources = [], []
    for keywords, asked in OPTIMA.get(env_id, [({}, {})]):
        method = asked.get("method", "benchmark")
        known = getattr(kind(**keywords), method)(**{k: v for k, v in asked.items() if k != "method"})
        if known is None:
            raise ValueError(f"{env_id} knows no optimum at {keywords}, {asked}; expected one, or another entry in OPTIMA.")
        settings = ", ".join(f"`{name}={value!r}`" for name, value in (keywords | asked).items()) or "defaults"
        holds = {None: "any", 0.0: "→ 0"}.get(known.regularization, f"{known.regularization}")
        kept = "optimum" if known.is_optimum else "best known"
        bound = "" if known.bound is None else f"no x exceeds {known.bound:.5g}; "
        limit = "" if known.limit is None else f"tends to {known.limit:.5g} as the grid is refined; "
        rows.append((settings, f"{known.value:.6g}", kept, holds, f"{known.objective}; {bound}{limit}".rstrip("; ")))
        sources.append(known.source)
    yield from table(("settings", "value", "", "λ", "what"), rows)
    yield ""
    yield "Source: " + "; ".join(dict.fromkeys(sources)) + "."


def logged(leader: leaders.Leader, follower: followers.Follower, regularization: float | None = None) -> list[str]:
    """The columns a run of these two logs; ``regularization`` is the leader's, where the follower has none."""
    leader.estimator.requested_regularization = regularization
    env = gym.make("bocmdp/PrincipalAgent-v0", discount=0.8, horizon=30)
    history = leaders.optimize(env, leader, follower, 2, seed=0, evaluate_every=1).history
    for name in history.columns:
        if name not in COLUMNS:
            raise ValueError(f"the column {name!r} is not explained in leaders.history.COLUMNS; explain it there.")
    return [name for name in COLUMNS if name in history.columns]


def metrics(names: Iterable[str]) -> Iterable[str]:
    """What columns mean, from the one place that says it."""
    return table(("metric", "meaning"), ((f"`{name}`", COLUMNS[name].replace("*", "\\*")) for name in names))


def class_page(title: str, classes: Iterable[str], module: str, logs: Iterable[str]) -> str:
    """A page with a module's mathematics, classes of it, and what they log."""
    lines = [f"# {title}", "", "```{eval-rst}", f".. automodule:: {module}", "   :no-members:", ""]
    for name in classes:
        foreign = name == "followers.SoftDQN"  # what it inherits is documented by Stable-Baselines3
        lines += [f".. autoclass:: {name}", "   :members:", *([] if foreign else ["   :inherited-members:"]), ""]
    return "\n".join([*lines, "```", "", *logs, ""])


def leader_pages(out: Path) -> set[str]:
    """A page for HPGD, for each of its estimators and for every other leader. Returns the classes they describe."""
    pages = {"HPGD": ("HPGD", ["leaders.HPGD"], "leaders.leaders", leaders.HPGD(**SHORT["monte_carlo"]))}
    for name, estimator in ESTIMATORS.items():
        leader = leaders.HPGD(estimator=name, **SHORT.get(name, {}))
        title = f'HPGD(estimator="{name}")'
        pages[name] = (title, [f"leaders.gradients.{estimator.__name__}"], estimator.__module__, leader)
    for name, (estimator, make) in LEADERS.items():
        classes = [f"leaders.{name}", f"leaders.gradients.{estimator.__name__}"]
        pages[name] = (name, classes, estimator.__module__, make())
    for name, (title, classes, module, leader) in pages.items():
        follower: followers.Follower = followers.SoftPolicyIteration(0.1)
        if name == "multilevel":
            follower = followers.SoftQLearning(0.1, iterations=1000)
        logs = ["## What it logs", "", "In a run on a small tabular problem:", "", *metrics(logged(leader, follower))]
        (out / f"{name}.md").write_text(class_page(title, classes, module, logs))
    return {name for _, classes, *_ in pages.values() for name in classes}


def follower_pages(out: Path) -> set[str]:
    """A page per follower. Returns the classes they describe."""
    of_the_leader = set(logged(leaders.ZeroOrder(env_steps=200), followers.LinearProgramming(), 0.1))
    described = set()
    for name in followers.__all__:
        kind = getattr(followers, name)
        if not (inspect.isclass(kind) and issubclass(kind, followers.Follower)) or inspect.isabstract(kind):
            continue
        logs = ["## What it logs", "", "Distances from the optimum, as of every follower that exposes its probabilities."]
        if name in FOLLOWERS:
            follower = FOLLOWERS[name]()
            lam = None if follower.regularization is not None else 0.1
            columns = logged(leaders.ZeroOrder(env_steps=200), follower, lam)
            own = [c for c in columns if c.startswith("follower_") or c not in of_the_leader]
            logs[2] = "Besides what the leader logs, in a run on a small tabular problem:" if own else "Nothing of its own."
            logs += ["", *metrics(own)] if own else []
        classes = [f"followers.{name}"] + ["followers.SoftDQN"] * (name == "SoftDQNFollower")
        module = followers.SoftDQN.__module__ if name == "SoftDQNFollower" else kind.__module__  # where the mathematics is
        (out / f"{name}.md").write_text(class_page(name, classes, module, logs))
        described.update(classes)
    return described


def api_pages(out: Path, elsewhere: set[str]) -> None:
    """The public names of each package, in one page per package; those with pages of their own are links."""
    seen: set[int] = set()
    for name in PUBLIC:
        package = importlib.import_module(name)
        own = package.__all__
        lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", ""]
        links = []
        for one in own:
            value, full = getattr(package, one), f"{name}.{one}"
            if inspect.ismodule(value):
                links.append(f":py:mod:`{one} <{value.__name__}>`")
            elif not (inspect.isclass(value) or inspect.isfunction(value)):
                lines += [f".. autodata:: {full}", ""]
            elif full in elsewhere or id(value) in seen:
                links.append(f":py:obj:`{one} <{value.__module__}.{one}>`")
            else:
                seen.add(id(value))
                members = ["   :members:", "   :show-inheritance:"] if inspect.isclass(value) else []
                lines += [f".. {'autoclass' if members else 'autofunction'}:: {full}", *members, ""]
        if links:
            lines += ["Described elsewhere: " + ", ".join(links) + ".", ""]
        (out / f"{name}.md").write_text("\n".join([*lines, "```", ""]))


def make_pages(app: Any) -> None:
    """Write all of them."""
    out = Path(app.srcdir) / "_generated"
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("environments", "leaders", "followers", "api", "includes"):
        (out / folder).mkdir(parents=True)
    shutil.copytree(NOTEBOOKS, out / "notebooks", ignore=lambda _, names: [n for n in names if not n.endswith(".ipynb")])
    cards = [environment_page(entry, out / "environments") for entry in ENVIRONMENTS]
    (out / "includes" / "gallery.md").write_text("\n".join(["::::{container} gallery", *cards, "::::", ""]))
    elsewhere = {f"bocmdp_gym.envs.{entry.entry_point.split(':')[1]}" for entry in ENVIRONMENTS}
    api_pages(out / "api", elsewhere | leader_pages(out / "leaders") | follower_pages(out / "followers"))
    (out / "includes" / "metrics.md").write_text("\n".join(metrics(COLUMNS)) + "\n")
    write_results(out / "includes")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", make_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
