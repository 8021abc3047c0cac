from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.options import (
    as_list,
    check_array,
    check_choice,
    check_count,
    check_distribution,
    check_number,
    check_regularization,
)
from tests.problems import small_model


@pytest.mark.parametrize("regularization", [0.0, -1.0, float("nan"), float("inf"), "small", None])
def test_bad_regularization_is_refused(regularization: Any) -> None:
    with pytest.raises(errors.RegularizationError, match="positive finite"):
        check_regularization(regularization)
    with pytest.raises(errors.RegularizationError, match="positive finite"):
        small_model().solve([0.0, 0.0], regularization)


@pytest.mark.parametrize("value", [0, -3, 1.5, 2.5, 1e300, True, "3", None, 11])
def test_counts(value: Any) -> None:
    assert check_count("n", np.int32(4), maximum=10) == check_count("n", 4.0) == 4
    with pytest.raises(errors.OptionError, match=r"^n is .*; expected an integer in 1\.\.10"):
        check_count("n", value, maximum=10)


@pytest.mark.parametrize("value", [0.0, -1, 3, float("nan"), float("inf"), "1", None, [1, 2]])
def test_numbers(value: Any) -> None:
    assert check_number("t", np.float32(0.5), above=0.0, maximum=2.0) == 0.5
    with pytest.raises(errors.OptionError, match=r"^t is .*; expected a finite number above 0 and at most 2, in hours"):
        check_number("t", value, above=0.0, maximum=2.0, note=", in hours")


def test_choices_arrays_and_distributions() -> None:
    assert check_choice("method", "dense", ("dense", "banded")) == "dense"
    with pytest.raises(errors.OptionError, match="Did you mean 'dense'"):
        check_choice("method", "dens", ("dense", "banded"))
    assert check_array("a", [[1, 2]], (None, 2)).dtype == np.float64
    for bad in ([1, 2], [[1.0, np.inf]], "text", np.zeros((0, 2))):
        with pytest.raises(errors.OptionError, match=r"^a (is|has)"):
            check_array("a", bad, (None, 2))
    np.testing.assert_array_equal(check_distribution("p", None, 4), np.full(4, 0.25))
    for probabilities in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(errors.OptionError, match=r"^p (is|has)"):
            check_distribution("p", probabilities, 2)


def test_lists() -> None:
    for value in ([1, 2], (1, 2), range(1, 3), np.array([1, 2])):
        assert as_list(value) == [1, 2]
    for value in (3, np.array(3), np.float64(3), "ab", b"ab", None, {1: 2}, lambda: None):
        assert as_list(value) is None


#: Checks that return their value converted: 1e4 as an int, np.float32(0.1) as a float, an array in float64.
CONVERTING = {"check_count", "check_number", "check_flag", "check_array", "check_distribution", "check_discount"}
CONVERTING |= {"check_regularization", "check_horizon", "check_folder"}


def test_what_a_check_returns_is_used() -> None:
    """Or a value that is accepted, such as 1e4 for a count, would be used as it came (run_arguments only refuses, early)."""
    folders = [Path(package.__file__).parent for package in (bocmdp_gym, followers, leaders) if package.__file__]
    ignored = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.py") if path.name != "run_arguments.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in CONVERTING:
                ignored.append(f"{path.name}:{call.lineno}")
    assert ignored == []
