from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bocmdp_gym.errors import BOCMDPError, CheckpointError
from bocmdp_gym.saved_state import array_entry, count_entry, decode, encode, loading, number_entry, read_state, write_state

STATE: dict[Any, Any] = {
    "z": torch.arange(3.0),
    "n": 3,
    "big": 2**100,
    "inner": {0: np.ones(2), "none": None, "b": 1, "a": [np.zeros((0, 2)), {"deep": (1, 2)}]},
    None: {},
    "f": np.float64(0.1),
    "tricky": '"sha256":"' + "0" * 64 + '"',
    "array": {"array": "0"},
}


def test_states_survive_the_disk(tmp_path: Path) -> None:
    write_state(tmp_path / "a" / "state", STATE)
    state = read_state(tmp_path / "a" / "state")
    assert list(state) == list(STATE)
    assert list(state["inner"]) == [0, "none", "b", "a"]
    np.testing.assert_array_equal(state["z"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(state["inner"][0], [1.0, 1.0])
    assert state["inner"]["a"][0].shape == (0, 2)
    assert state["inner"]["a"][1] == {"deep": [1, 2]}
    assert (state["n"], state["big"], state["f"], state[None]) == (3, 2**100, 0.1, {})
    assert (state["tricky"], state["array"]) == (STATE["tricky"], STATE["array"])


def test_every_truncation_and_every_flipped_bit_is_found() -> None:
    content = encode({"x": np.arange(4.0), "n": 1})
    for length in range(len(content)):
        with pytest.raises(CheckpointError, match="the file: "):
            decode(content[:length], "the file")
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(CheckpointError, match="the file: "):
            decode(bytes(damaged), "the file")
    with pytest.raises(CheckpointError):
        decode(content + b"\0", "the file")


@pytest.mark.parametrize("value", [object(), 1j, b"x", np.array([1j]), np.array(["a"]), {(1, 2): 3}, {True: 1}])
def test_what_cannot_be_saved_is_named(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\['v'\]"):
        encode({"v": value})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        read_state(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_state(tmp_path)


@pytest.mark.parametrize("n", [-5, 1.0, True, "1", None, 9])
def test_entries_are_checked(n: Any) -> None:
    with pytest.raises(CheckpointError, match="state's n"):
        count_entry({"n": n}, "n", 8)


def test_other_entries_are_checked() -> None:
    for call in (
        lambda: count_entry({}, "n"),
        lambda: number_entry({"n": float("nan")}, "n"),
        lambda: array_entry({"n": np.ones(3)}, "n", (2,)),
        lambda: array_entry({"n": np.array([np.inf])}, "n", (1,)),
        lambda: array_entry({"n": [1.0]}, "n", (1,)),
    ):
        with pytest.raises(CheckpointError):
            call()


def test_errors_of_python_are_named_and_others_pass() -> None:
    for error in (KeyError("x"), TypeError("x"), IndexError("x")):
        with pytest.raises(CheckpointError, match="the file is whole"), loading("the file"):
            raise error
    with pytest.raises(BOCMDPError, match="mine"), loading("the file"):
        raise BOCMDPError("mine")
