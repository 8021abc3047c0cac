from __future__ import annotations

import numpy as np
import pytest

from leaders import History


def test_records_are_read_by_row_and_by_column() -> None:
    history = History([{"iteration": 0, "leader_return": 0.5}, {"iteration": 1}])
    history.append({"iteration": 2, "slack": 1.0})
    assert history[-1] == {"iteration": 2, "slack": 1.0}
    assert [record["iteration"] for record in history] == [0, 1, 2]
    assert history.columns == ["iteration", "leader_return", "slack"]
    np.testing.assert_array_equal(history["leader_return"], [0.5, np.nan, np.nan])
    with pytest.raises(KeyError, match="columns are"):
        history["leader_retrun"]


def test_a_history_survives_its_state() -> None:
    history, other = History([{"iteration": 0, "leader_return": 0.5}, {"iteration": 1}]), History()
    other.load_state(history.state())
    assert other == history
    assert type(other[1]["iteration"]) is int
