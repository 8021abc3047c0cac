from __future__ import annotations

import copy
import inspect
import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import UnknownOptionError


class Shape(WithArguments, ABC):
    @abstractmethod
    def area(self) -> float: ...


class Box(Shape):
    def __init__(self, width: float, height: float = 1.0, *, name: str | None = None, weights: Any = None):
        self.width, self.height, self.name, self.weights = width, height, name, weights

    def area(self) -> float:
        return self.width * self.height


class Square(Box):
    def __init__(self, side: float, **options: Any):
        super().__init__(side, side, **options)


class Unit(Box):
    """Takes its base's arguments."""


class Plain(Shape):
    """Takes none."""

    def area(self) -> float:
        return 0.0


class Sum(WithArguments):
    def __init__(self, *parts: Any, scale: float = 1.0):
        self.parts = parts


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Box(2), "Box(width=2)"),
        (Box(2, 1.0, name=None), "Box(width=2)"),
        (Box(height=3.0, width=2), "Box(width=2, height=3.0)"),
        (Box(np.float64(2.5), weights=np.eye(2)), "Box(width=2.5, weights=[[1.0, 0.0], [0.0, 1.0]])"),
        (Box(1, name=Path("a") / "b"), "Box(width=1, name='a/b')"),  # type: ignore[arg-type]
        (Box(1, weights={"a": (Box(2),)}), "Box(width=1, weights={'a': (Box(width=2),)})"),
        (Box(1, weights=[Box, np.argmax]), "Box(width=1, weights=[Box, argmax])"),
        (Square(2, name="s"), "Square(side=2, name='s')"),
        (Unit(1), "Unit(width=1)"),
        (Plain(), "Plain()"),
        (Sum(Box(1), 2, scale=3.0), "Sum(Box(width=1), 2, scale=3.0)"),
    ],
)
def test_reprs_can_be_pasted_back(made: Any, text: str) -> None:
    assert repr(made) == text
    names = {kind.__name__: kind for kind in (Box, Square, Unit, Plain, Sum)} | {"argmax": np.argmax}
    assert repr(eval(text, names)) == text
    assert repr(pickle.loads(pickle.dumps(made))) == repr(copy.deepcopy(made)) == text  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(1, heigth=2), "Box has no option 'heigth'. Did you mean 'height'?"),  # type: ignore[call-arg]
        (lambda: Unit(1, nam="x"), "Unit has no option 'nam'. Did you mean 'name'?"),  # type: ignore[call-arg]
        (lambda: Square(1, weight=2), "no argument|unexpected keyword"),
        (lambda: Box(1, 2, "x"), r"3 positional arguments; expected at most 2 \(width, height\). Name the others: name, weights"),  # type: ignore[misc]
        (lambda: Plain(1), "1 positional arguments; expected at most none"),  # type: ignore[call-arg]
        (lambda: Plain(a=1), "Plain has no option 'a'"),  # type: ignore[call-arg]
        (lambda: Box(1, width=2), "was given width twice"),  # type: ignore[misc]
        (lambda: Sum(1, scal=2), "Did you mean 'scale'"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        make()
    assert isinstance(caught.value, UnknownOptionError) or "unexpected" in message


def test_what_python_refuses_stays_refused() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        Box()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="abstract"):
        Shape()  # type: ignore[abstract]


def test_signatures_are_the_constructors() -> None:
    assert list(inspect.signature(Box).parameters) == list(inspect.signature(Unit).parameters)
    assert list(inspect.signature(Box).parameters) == ["width", "height", "name", "weights"]
    assert not inspect.signature(Plain).parameters
