from __future__ import annotations

from typing import Any

import pytest

from bocmdp_gym import errors
from bocmdp_gym.arguments import Constructed
from bocmdp_gym.deprecation import deprecated_argument, deprecated_name


class Sampler(Constructed):
    @deprecated_argument("batch", None, "0.2", "0.3")
    @deprecated_argument("percent", "share", "0.2", "0.3", convert=lambda value: value / 100)
    def __init__(self, steps: int, share: float = 1.0):
        self.steps, self.share = steps, share


def test_an_old_argument_works_and_warns_where_it_is_used() -> None:
    with pytest.warns(FutureWarning, match=r"Sampler\(percent=...\) is deprecated since version 0.2 .* use share=...") as caught:
        assert Sampler(3, percent=50).share == 0.5  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="no effect"):
        assert Sampler(3, batch=1).steps == 3  # type: ignore[call-arg]
    assert Sampler(3, share=0.2).share == 0.2


def test_both_names_or_an_unknown_one_are_refused() -> None:
    with pytest.raises(TypeError, match="renamed to share, and both"):
        Sampler(3, share=0.1, percent=50)  # type: ignore[call-arg]
    with pytest.raises(errors.UnknownOptionError, match="Did you mean 'share'"):
        Sampler(3, shares=0.1)  # type: ignore[call-arg]


def test_an_old_name_warns() -> None:
    def lookup(name: str) -> Any:
        deprecated_name("room.Old", "room.New", "0.2", "0.3")
        return name

    with pytest.warns(FutureWarning, match="room.Old is deprecated .* removed in 0.3; use room.New") as caught:
        assert lookup("Old") == "Old"
    assert caught[0].filename == __file__
