"""The search from random starts as a task."""

import json

import pytest

from leaders.reproduce.paper import Cell
from leaders.reproduce.search import search, search_task


def test_a_small_search(tmp_path):
    settings = search_task(Cell(0.003, 3.0), 0.44) | {"starts": 4, "rounds": 2, "iterations": 10}
    found = search(settings, tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["value"] == max(found["starts"])
    assert len(found["starts"]) == 4


@pytest.mark.slow
def test_random_starts_reach_the_best_known(tmp_path):
    assert search(search_task(Cell(0.001, 1.0), 0.44), tmp_path)["value"] > 0.99 * 1.1772
