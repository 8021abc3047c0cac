from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym

from leaders.contexts import every_context


def test_contexts_that_never_come_are_left_out() -> None:
    core = SimpleNamespace(context_space=gym.spaces.Discrete(3, start=2), context_probabilities=[0.25, 0.0, 0.75])
    assert every_context(core) == [(2, 0.25), (4, 0.75)]


def test_infinitely_many_contexts_are_none() -> None:
    assert every_context(SimpleNamespace(context_probabilities=None)) is None
