"""The commands of `leaders.train`: one per registered environment, made from its constructor, and one for anybody's own.

A command has the settings of every run and the arguments of the environment's constructor, with their types, defaults and
texts. An argument that has the name of a setting of the run is called env_NAME: ``--env-seed`` is the model's, ``--seed`` the
run's. ``render_mode`` is left out: a run shows nothing while it trains.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from typing import Any, get_type_hints

from bocmdp_gym.docstrings import argument_help
from bocmdp_gym.registration import Entry
from followers.registry import FOLLOWERS
from leaders.leaders import HPGD
from leaders.settings.names import CUSTOM, DEFAULTS, Defaults, command_text, environments
from leaders.settings.options import Option, annotated, options_of
from leaders.settings.run import RUN_NAMES, RunSettings, follower_fields, leader_fields, named_fields, objective_fields


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


class Commands(Mapping[str, type[RunSettings]]):
    """The settings of a run by the name of its command; a command's are made, and its environment imported, when asked for."""

    def __getitem__(self, name: str) -> type[RunSettings]:
        entry = None if name == CUSTOM else environments()[name]
        followers = tuple((follower, *one.options.items()) for follower, one in FOLLOWERS.items())
        return _command(name, entry, tuple(HPGD.kinds.items()), followers)

    def __iter__(self) -> Iterator[str]:
        yield from environments()
        yield CUSTOM

    def __len__(self) -> int:
        return len(environments()) + 1


def commands() -> Commands:
    """The settings of a run by the name of its command, such as four-rooms for ``bocmdp/FourRooms-v0``."""
    return Commands()


@lru_cache
def _command(name: str, entry: Entry | None, *registered: Any) -> type[RunSettings]:
    """The settings of one command; made again when an estimator or a follower has been registered."""
    if entry is None:
        keywords = Option("options", dict[str, Any], {}, "Keywords of gym.make, by name", {})
        return _settings(name, CustomSettings, CustomSettings.__doc__ or "", {"options": keywords}, {})
    module, _, attribute = entry.entry_point.partition(":")
    constructor = getattr(importlib.import_module(module), attribute)
    own = DEFAULTS.get(entry.id, Defaults())
    parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name != "render_mode"]
    known = options_of(parameters, constructor, argument_help(constructor))
    values = dict(own.values) | {setting: known[name].default for name, setting in own.same.items()}
    options = {name: option for name, option in known.items() if name not in own.same}
    base = type("EnvironmentSettings", (RunSettings,), {"env_id": entry.id, "same": own.same})
    return _settings(name, base, command_text(entry), options, values)


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
