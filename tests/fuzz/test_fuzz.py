"""Random inputs to the public API are right, or refused by name: no other exception, no silent nonsense."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import brute_force
from tests.fuzz.inputs import try_all
from tests.problems import random_model


def fuzz(numbers: range) -> Counter[str]:
    found, faults = try_all(numbers)
    assert not faults, "\n" + "\n".join(faults[:30])
    return found


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_random_inputs_are_right_or_refused_by_name() -> None:
    found = fuzz(range(2_000))
    assert min(found["right"], found["named"]) > 500


@pytest.mark.slow
def test_many_random_inputs_are_right_or_refused_by_name() -> None:
    fuzz(range(2_000, 102_000))


def test_brute_force_agrees_where_the_solver_is_known_to_be_right() -> None:
    model = random_model(3, contexts=1)
    x = np.full(model.leader_dim, 0.2)
    mdps = model.configure(x)
    parts = [getattr(mdps, name)[0].numpy() for name in ("reward", "leader_reward")]
    truth = brute_force.solve(
        *parts, mdps.transition.values[0].numpy(), mdps.initial[0].numpy(), mdps.termination[0].numpy(), (0.9, 0.8), 0.5
    )
    np.testing.assert_allclose(model.solve(x, 0.5).policy[0], truth.policy, atol=1e-10)
    assert float(model.leader_return(x, 0.5)) == pytest.approx(truth.leader_return, rel=1e-10)
