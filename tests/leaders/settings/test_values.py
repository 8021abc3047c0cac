from __future__ import annotations

import json
from pathlib import Path

import pytest

from bocmdp_gym.errors import OptionError
from leaders.settings import settings_from_values
from leaders.train import parse

ROOMS = "xxxxxx\nx    x\nx xx x\nx    x\nxxxxxx\n"


def test_a_file_is_read_and_its_text_is_the_setting(tmp_path: Path) -> None:
    layout, goals = tmp_path / "rooms.txt", tmp_path / "goals.json"
    layout.write_text(ROOMS)
    goals.write_text("[[3, 4]]")
    read = parse(["four-rooms", "--layout", f"@{layout}", "--goals", f"@{goals}"])
    assert read == settings_from_values("four-rooms", {"layout": ROOMS, "goals": [[3, 4]]})
    assert read.fingerprint()["layout"] == ROOMS
    assert json.loads(json.dumps(read.fingerprint()))["goals"] == [[3, 4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layout": "@nowhere.txt"}, "layout is to be read from the file nowhere.txt"),
        ({"goals": "[[1"}, "--goals is '\\[\\[1', which is not JSON"),
        ({"goals": "[[0.5]]"}, "goals is 0.5; expected int"),
        ({"start": [1, "a"]}, "start is"),
        ({"follower_options": [1]}, "follower_options is \\[1\\]; expected an object"),
        ({"follower": "ppp"}, "Did you mean 'ppo'"),
        ({"estimator": "monte_carlo"}, "Did you mean 'monte-carlo'"),
        ({"observation": "indices"}, "unknown observation 'indices'. Did you mean 'index'"),
        ({"module": "no.such.module"}, "cannot import --module no.such.module"),
    ],
)
def test_what_cannot_be_read_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings_from_values("four-rooms", values)
