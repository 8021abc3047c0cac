from __future__ import annotations

from itertools import pairwise

import leaders.updates
from benchmarks.walk import library_file, record, stays


def test_a_walk_goes_from_one_step_of_x_to_the_next() -> None:
    calls = record()
    assert calls[0] == ("leaders/updates.py", "Update.step")
    assert calls.count(calls[0]) == 1
    walk = stays(calls)
    assert [function for _, functions in walk for function in functions] == [function for _, function in calls]
    assert all(here[0] != there[0] for here, there in pairwise(walk))
    assert len(walk) <= 47  # of the first version


def test_only_files_of_the_library_count() -> None:
    assert library_file(str(leaders.updates.__file__)) == "leaders/updates.py"
    assert library_file(__file__) is None
