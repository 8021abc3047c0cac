from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from leaders.settings import commands, settings_from_values
from leaders.settings.spelled import command_of
from leaders.train import parse

VALUES: dict[str, dict[str, Any]] = {
    "four-rooms": {"layout": "xxxx\nx  x\nxxxx\n", "start": None, "goals": [[1, 2]], "penalty_cost": -1.5, "contexts": "all"},
    "tax-design": {"estimator": "critic", "leader": "hpgd", "env_steps": 7, "seed": 3, "regularization_from": 1},
    "random-mdp": {"env_seed": 4, "follower": "ppo", "follower_options": {"n_steps": 8, "policy": "it's"}},
    "custom": {"id": "mine/Roads-v0", "options": {"a": [1, None, "b c"]}, "module": "mine", "share_contexts": True},
    "meta-rl": {"leader_objective": "cvar", "leader_objective_level": 0.2, "share_contexts": False},
}


@pytest.mark.parametrize("name", list(commands()))
def test_the_command_has_the_settings(name: str) -> None:
    settings = settings_from_values(name, {"id": "mine/Roads-v0"} if name == "custom" else {})
    again = shlex.split(command_of(settings))
    assert again[:4] == ["python", "-m", "leaders.train", name]
    assert parse(again[3:]) == settings
    assert len(again) == (6 if name == "custom" else 4)  # defaults are left out


@pytest.mark.parametrize("name", VALUES)
def test_the_command_spells_every_kind_of_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaders.settings.values.import_module", lambda module: None)
    monkeypatch.setattr("leaders.train.import_module", lambda module: None)
    settings = settings_from_values(name, VALUES[name] | {"out": Path("elsewhere"), "progress": False})
    command = command_of(settings)
    assert "elsewhere" not in command
    assert parse(shlex.split(command)[3:]).fingerprint() == settings.fingerprint()
