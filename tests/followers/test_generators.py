from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from followers.generators import isolated_generators, isolated_torch


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - that is what is tested


def draw_and_fail() -> None:
    with isolated_generators(2):
        draw()
        raise ZeroDivisionError


def test_generators_are_put_back_even_after_an_error() -> None:
    with isolated_generators(7):
        expected = draw()
    with isolated_generators(7):
        assert draw() == expected
    with isolated_generators(8):
        assert all(a != b for a, b in zip(draw(), expected, strict=True))
    with isolated_generators(1):
        draw()
        following = draw()
    with isolated_generators(1):
        draw()
        with pytest.raises(ZeroDivisionError):
            draw_and_fail()
        with isolated_generators():
            draw()
        with isolated_torch(3):
            torch.rand(5)
        assert draw() == following
