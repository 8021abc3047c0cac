from __future__ import annotations

import pytest

from benchmarks import tried_with


def test_a_combination_ends_with_what_it_is() -> None:
    assert tried_with.attempt("CartPole", "random agent", "ZeroOrder")["outcome"] == "runs"
    refused = tried_with.attempt("CartPole", "SAC", "ZeroOrder")
    assert refused["outcome"] == "refused"
    assert "SAC cannot take this environment" in refused["sentence"]


def test_what_no_error_of_ours_says_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error: one that no combination may end with."""

    def broken(env: object) -> None:
        raise KeyError("lost")

    monkeypatch.setitem(tried_with.FOLLOWERS, "random agent", broken)  # type: ignore[arg-type]
    found = tried_with.attempt("CartPole", "random agent", "ZeroOrder")
    assert (found["outcome"], found["sentence"]) == ("failed", "KeyError: 'lost'")


@pytest.mark.slow
@pytest.mark.parametrize("world", tried_with.WORLDS)
def test_everything_runs_or_says_why_not(world: str) -> None:
    if world in tried_with.missing():
        pytest.skip(f"{tried_with.WORLDS[world].package} is not installed")
    rows = [tried_with.attempt(world, follower, leader) for follower in tried_with.FOLLOWERS for leader in tried_with.LEADERS]
    assert [row for row in rows if row["outcome"] == "failed"] == []
    assert sum(row["outcome"] == "runs" for row in rows) >= len(rows) / 3
