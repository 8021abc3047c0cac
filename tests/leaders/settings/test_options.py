from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, Literal

import numpy.typing as npt
import pytest

from bocmdp_gym.docstrings import argument_help
from leaders.settings.options import needs_json, options_of, setting_type


@pytest.mark.parametrize(
    ("annotation", "kind", "as_json"),
    [
        (int, int, False),
        (float | None, float | None, False),
        (Literal["state_action", "slot"], Literal["state-action", "slot"], False),
        (Sequence[int], tuple[int, ...], False),
        (Sequence[float] | None, tuple[float, ...] | None, False),
        (tuple[int, str], tuple[int, str], False),
        (str | Sequence[str], str | tuple[str, ...], False),
        (Sequence[Sequence[float]], tuple[tuple[float, ...], ...], True),
        (Sequence[Any], tuple[Any, ...], True),
        (Mapping[str, int], dict[str, Any], True),
        (npt.ArrayLike | None, Any, True),
        (str | Callable[[int], float], str, False),
        (Callable[[int], float], None, False),
        (Exception | None, None, False),
    ],
)
def test_annotations_become_types_of_settings(annotation: Any, kind: Any, as_json: bool) -> None:
    assert setting_type(annotation) == kind
    assert needs_json(kind) == as_json


class Thing:
    """A thing.

    Args:
        needed: is needed.
        place: where.
        given: not a setting.
    """

    def __init__(
        self, needed: int, place: Literal["in_it", "out"] = "in_it", given: Exception | None = None, *, bare=0.5, **rest: Any
    ):  # type: ignore[no-untyped-def]
        pass


def test_a_constructor_says_what_its_options_are() -> None:
    options = options_of(inspect.signature(Thing).parameters.values(), Thing, argument_help(Thing))
    assert list(options) == ["needed", "place", "bare"]
    assert options["needed"].default is MISSING
    assert options["needed"].help == "is needed."
    assert options["place"].default == "in-it"
    assert options["place"].value("in-it") == "in_it"
    assert (options["bare"].kind, options["bare"].default) == (float, 0.5)
