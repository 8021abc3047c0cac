from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from bocmdp_gym import configurable
from bocmdp_gym.registration import ENVIRONMENTS, Entry
from leaders.settings import commands, settings_from_values
from leaders.settings.names import DEFAULTS, Defaults, command_name
from leaders.settings.run import RUN_NAMES
from leaders.train import parse


def _constructor(entry: Entry) -> Any:
    module, _, name = entry.entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("entry", ENVIRONMENTS, ids=lambda entry: entry.id)
def test_every_argument_is_an_option_with_the_constructor_s_default(entry: Entry) -> None:
    """All but how it is drawn; each is passed on as it is, and an argument that is a setting of the run has its default too."""
    settings = settings_from_values(command_name(entry.id), {})
    expected = {name: p.default for name, p in inspect.signature(_constructor(entry)).parameters.items() if name != "render_mode"}
    assert {name: _plain(value) for name, value in settings.env_options().items()} == {
        name: _plain(value) for name, value in expected.items()
    }
    for name in expected:
        if name not in DEFAULTS.get(entry.id, Defaults()).same:
            assert hasattr(settings, f"env_{name}" if name in RUN_NAMES else name)


@pytest.mark.parametrize("entry", ENVIRONMENTS, ids=lambda entry: entry.id)
def test_its_help_explains_every_argument(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([command_name(entry.id), "--help"])
    shown = capsys.readouterr().out
    elsewhere = {"render_mode", *DEFAULTS.get(entry.id, Defaults()).same}
    for name in inspect.signature(_constructor(entry)).parameters.keys() - elsewhere:
        assert f"--{'env-' * (name in RUN_NAMES)}{name.replace('_', '-')}" in shown


def test_an_environment_that_is_added_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Entry("mine/OtherRooms-v0", "bocmdp_gym.envs.four_rooms:FourRooms")
    monkeypatch.setattr("leaders.settings.names.ENVIRONMENTS", (*ENVIRONMENTS, other))
    assert commands()["other-rooms"]().env_id == "mine/OtherRooms-v0"
    assert len(commands()) == len(ENVIRONMENTS) + 2


def test_a_command_s_settings_are_made_once() -> None:
    assert commands()["four-rooms"] is commands()["four-rooms"]
    with pytest.raises(KeyError, match="four-room"):
        commands()["four-room"]


def test_values_of_every_form_reach_the_environment() -> None:
    arguments = ["--start", "None", "--goals", "[[1, 1]]", "--observation", "coordinates", "--discount", "0.9"]
    core: Any = configurable(parse(["four-rooms", *arguments]).make_env())
    assert (core.start, len(core.goals), core.discount) == (None, 1, 0.9)
    core = configurable(parse(["principal-agent", "--bonus-on", "state", "--env-seed", "3", "--layers", "2"]).make_env())
    assert (core.bonus_on, core.layers) == ("state", 2)
    core = configurable(parse(["dynamic-mechanism", "--types", "0.2", "0.8", "--boosts", "state-action"]).make_env())
    assert (core.types.tolist(), core.boosts) == ([0.2, 0.8], "state_action")
    core = configurable(parse(["meta-rl", "--rewards", "[[1, 0], [0, 1]]", "--regularization", "0.5"]).make_env())
    assert (core.model.n_states, core.kl_weight) == (1, 0.5)
