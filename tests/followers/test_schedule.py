from __future__ import annotations

import numpy as np
import pytest

from followers.schedule import Schedule


def played(schedule: Schedule, lengths: list[int]) -> tuple[list[int], int]:
    """The lengths of the episodes that are kept, and the steps made in all."""
    steps = most = 0
    while True:
        while schedule.begins_another:
            schedule.begin()
        most = max(most, len(schedule.running))
        if not schedule.running:
            return schedule.lengths, steps
        steps += len(schedule.running)
        schedule.step([number for number in schedule.running if schedule.lengths[number] + 1 == lengths[number]])


@pytest.mark.parametrize("most", [1, 2, 7, 32])
@pytest.mark.parametrize("limit", [None, 40, 100_000])
def test_the_episodes_kept_do_not_depend_on_how_many_are_played_at_once(most: int, limit: int | None) -> None:
    rng = np.random.default_rng(0)
    for budget in (1, 2, 30, 500):
        lengths = np.minimum(rng.geometric(0.1, 1000), 40)
        lengths[:40:3] = 40
        needed = int(np.searchsorted(lengths.cumsum(), budget)) + 1
        schedule = Schedule(budget, most, limit)
        kept, steps = played(schedule, lengths.tolist())
        assert kept == lengths[:needed].tolist()
        assert steps == sum(kept) + schedule.dropped_steps
        if most == 1:
            assert schedule.dropped_steps == 0


def test_no_more_episodes_are_played_than_are_asked_for() -> None:
    kept, _ = played(Schedule(1000, 8, None, 5), [3, 2, 9, 1, 4])
    assert kept == [3, 2, 9, 1, 4]
    kept, _ = played(Schedule(14, 8, None, 5), [3, 2, 9, 1, 4])
    assert kept == [3, 2, 9]


def test_episodes_of_known_length_are_not_begun_in_vain() -> None:
    schedule = Schedule(1000, 32, 100)
    kept, steps = played(schedule, [100] * 50)
    assert (len(kept), steps, schedule.dropped_steps) == (10, 1000, 0)


def test_short_episodes_are_played_many_at_once_all_the_same() -> None:
    schedule = Schedule(10_000, 32, 500)
    most = rounds = 0
    while schedule.begins_another or schedule.running:
        while schedule.begins_another:
            schedule.begin()
        most, rounds = max(most, len(schedule.running)), rounds + 1
        schedule.step([number for number in schedule.running if schedule.lengths[number] == 19])
    assert most == 32
    assert rounds < 10_000 / 25
    assert schedule.dropped_steps < 300
