"""The commands of `leaders.train`: one per registered environment, made from its constructor, and one for anybody's own.

A command has the settings of every run and the arguments of the environment's constructor, with their types, defaults and
texts. An argument that has the name of a setting of the run is called env_NAME: ``--env-seed`` is the model's, ``--seed`` the
run's. ``render_mode`` is left out: a run shows nothing while it trains.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints

from bocmdp_gym.docstrings import argument_help, summary
from bocmdp_gym.registration import ENVIRONMENTS, Entry
from followers.registry import FOLLOWERS
from leaders.leaders import HPGD
from leaders.settings.options import Option, annotated, options_of
from leaders.settings.run import RUN_NAMES, RunSettings, follower_fields, leader_fields, named_fields, objective_fields


class Defaults(NamedTuple):
    """What a run in one environment has otherwise than others.

    Attributes:
        values: defaults of settings of the run.
        same: arguments of the environment that are settings of the run, and default to the argument's default.
        note: what its help says besides.
    """

    values: Mapping[str, Any] = {}
    same: Mapping[str, str] = {}
    note: str = ""


_STORAGE = Defaults(
    {"leader": "exact", "contexts": "all", "regularization": 0.1, "learning_rate": 0.1, "optimizer": "Adam", "iterations": 200},
    note="States are real numbers, so hpgd needs --estimator critic here.",
)
DEFAULTS: dict[str, Defaults] = {
    "bocmdp/Battery-v0": _STORAGE,
    "bocmdp/BuildingControl-v0": Defaults(
        {"leader": "exact", "regularization": 0.1, "learning_rate": 0.3, "optimizer": "Adam", "iterations": 200},
        note="Other leaders than exact need --follower linear-quadratic here (or ppo, sac, ...), and hpgd --estimator critic.",
    ),
    "bocmdp/DynamicMechanism-v0": Defaults(
        {
            "leader": "exact",
            "contexts": "all",
            "iterations": 200,
            "optimizer": "Adam",
            "learning_rate": 0.05,
            "regularization": 0.03,
        },
        note="Payments are differences of values in several contexts: a few contexts per iteration mislead, and hpgd, which has "
        "to tell them from noise, needs many --env-steps. The return is the revenue up to an entropy in proportion to "
        "--regularization.",
    ),
    "bocmdp/IncomeTax-v0": Defaults(
        {"leader": "exact", "iterations": 300, "optimizer": "Adam", "learning_rate": 0.02},
        same={"regularization": "regularization"},
        note="--regularization is the lambda of all people.",
    ),
    "bocmdp/Inventory-v0": _STORAGE,
    "bocmdp/LeaderActs-v0": Defaults(
        {"leader": "exact", "regularization": 0.05, "learning_rate": 0.1, "iterations": 1000},
        note="The best setting known of hpgd is --estimator td --td-rate 0.02 --schedule cosine.",
    ),
    "bocmdp/MetaRL-v0": Defaults(
        same={"kl_weight": "regularization"},
        note="--regularization is kl_weight, the price of departing from the prior.",
    ),
    "bocmdp/RoadTolls-v0": Defaults(
        {"leader": "exact", "iterations": 200, "optimizer": "Adam", "learning_rate": 0.2},
        same={"regularization": "regularization"},
        note="--regularization is the lambda of all drivers, in minutes.",
    ),
    "bocmdp/TaxDesign-v0": Defaults(
        {"leader": "exact", "regularization": 0.1, "iterations": 1000},
        note="States are real numbers, so hpgd needs --estimator critic here. The published runs have --regularization 0.1, 0.2 "
        "and 0.3.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class CustomSettings(RunSettings):
    """Your own configurable environment, registered with Gymnasium by the module that --module names."""

    id: str
    """Its id, such as mine/Roads-v0."""

    @property
    def env_id(self) -> str:
        return self.id

    def env_options(self) -> dict[str, Any]:
        return self._arguments("environment")["options"]


def commands() -> dict[str, type[RunSettings]]:
    """The settings of a run by the name of its command, such as four-rooms for ``bocmdp/FourRooms-v0``."""
    return dict(
        _commands(tuple(ENVIRONMENTS), tuple(HPGD.kinds.items()), tuple((name, one.options) for name, one in FOLLOWERS.items()))
    )


@lru_cache(maxsize=1)
def _commands(*known: Any) -> dict[str, type[RunSettings]]:
    """As `commands`; made again when something has been registered."""
    found = {command_name(entry.id): _command(entry) for entry in ENVIRONMENTS}
    options = Option("options", dict[str, Any], {}, "Keywords of gym.make, by name", {})
    found["custom"] = _settings("custom", CustomSettings, CustomSettings.__doc__ or "", {"options": options}, {})
    return found


def command_name(env_id: str) -> str:
    """The name of an environment's command: ``bocmdp/FourRooms-v0`` has four-rooms."""
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _command(entry: Entry) -> type[RunSettings]:
    module, _, attribute = entry.entry_point.partition(":")
    constructor = getattr(importlib.import_module(module), attribute)
    own = DEFAULTS.get(entry.id, Defaults())
    parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name != "render_mode"]
    known = options_of(parameters, constructor, argument_help(constructor))
    values = dict(own.values) | {setting: known[name].default for name, setting in own.same.items()}
    options = {name: option for name, option in known.items() if name not in own.same}
    base = type("EnvironmentSettings", (RunSettings,), {"env_id": entry.id, "same": own.same})
    return _settings(command_name(entry.id), base, f"{summary(constructor)} {own.note}".strip(), options, values)


def _settings(
    name: str, base: type[RunSettings], text: str, options: Mapping[str, Option], values: Mapping[str, Any]
) -> type[RunSettings]:
    """Settings of a run: those of ``base``, of leaders, and of an environment (``options``); ``values`` are other defaults."""
    environment = {f"env_{one}" if one in RUN_NAMES else one: option for one, option in options.items()}
    inherited, hints = {f.name: f for f in fields(base)}, get_type_hints(base)
    made = {setting: (kind, _again(inherited[setting], values)) for setting, kind in named_fields().items()}
    for setting in values.keys() & inherited.keys() - made.keys():
        made[setting] = hints[setting], _again(inherited[setting], values)
    every = [(setting, option, "environment") for setting, option in environment.items()]
    leader = leader_fields(RUN_NAMES | environment.keys())
    follower = follower_fields(RUN_NAMES | environment.keys() | {setting for setting, *_ in leader})
    for setting, option, owner in [*objective_fields(), *leader, *follower, *every]:
        option = replace(option, default=values.get(setting, option.default))
        made[setting] = annotated(option, None if owner in ("environment", "update") else ""), option.field(owner)
    specified = [(setting, kind, default) for setting, (kind, default) in made.items()]
    namespace = {"name": name, "__doc__": text, "__module__": __name__}
    return make_dataclass(f"{name} settings", specified, bases=(base,), frozen=True, kw_only=True, namespace=namespace)


def _again(inherited: Field[Any], values: Mapping[str, Any]) -> Field[Any]:
    """A field for another type, with its default or the one in ``values``."""
    if inherited.name in values:
        made: Field[Any] = field(default=values[inherited.name])
        return made
    return field(default=inherited.default, default_factory=inherited.default_factory)
