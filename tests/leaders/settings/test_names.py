from __future__ import annotations

import pytest

from bocmdp_gym.registration import ENVIRONMENTS
from leaders.settings import commands
from leaders.settings.names import DEFAULTS, command_name, command_texts


def test_every_command_says_what_its_settings_say() -> None:
    texts = command_texts()
    assert list(texts) == list(commands())
    assert {name: kind.__doc__ for name, kind in commands().items()} == texts


def test_defaults_are_those_of_registered_environments() -> None:
    assert DEFAULTS.keys() <= {entry.id for entry in ENVIRONMENTS}


@pytest.mark.parametrize(
    ("env_id", "name"), [("bocmdp/FourRooms-v0", "four-rooms"), ("bocmdp/RandomMDP-v1", "random-mdp"), ("MetaRL", "meta-rl")]
)
def test_ids_become_names(env_id: str, name: str) -> None:
    assert command_name(env_id) == name
