from __future__ import annotations

import numpy as np

from benchmarks import escape_room

SHORT = escape_room.Budget(sizes=(3.0,), rounds=1, env_steps=50, evaluations=1)


def test_a_short_run_reports_what_the_table_needs() -> None:
    run = escape_room.learn((2, 1), 0, SHORT)
    assert run["x"] in [[0.0] * 3, *np.diag([3.0] * 3).tolist()]
    assert run["value_in_search"] <= 10.0
    for name in ("paid", "unpaid"):
        assert 0.0 <= run[name]["escapes"] <= 1.0
    told = escape_room.summary([run, {**run, "paid": {"escapes": 1.0, "leader_return": run["paid"]["leader_return"] + 2.0}}])
    assert told["unpaid escapes"] == {"mean": run["unpaid"]["escapes"], "standard_error": 0.0}
    np.testing.assert_allclose(told["paid leader_return"]["standard_error"], 1.0)
