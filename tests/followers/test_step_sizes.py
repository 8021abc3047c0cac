from __future__ import annotations

import pytest

from bocmdp_gym import errors
from followers import StepSize
from followers.step_sizes import check_step_size


def test_steps_are_h_over_n_plus_offset() -> None:
    assert [StepSize.harmonic(2.0, 4.0).at(n) for n in (0, 4)] == [0.5, 0.25]
    assert [StepSize.visits(3.0).at(n) for n in (0, 3)] == [1.0, 0.5]
    assert StepSize.visits(3.0).per_pair
    assert [StepSize.constant(0.1).at(n) for n in (0, 1000)] == [0.1, 0.1]
    assert check_step_size(0.25) == StepSize.constant(0.25)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), None, "fast"])
def test_steps_must_be_positive_and_finite(bad: object) -> None:
    for make in (StepSize.constant, StepSize.visits, lambda h: StepSize.harmonic(h, 1.0), lambda t: StepSize.harmonic(1.0, t)):
        if bad is None and make == StepSize.visits:
            continue
        with pytest.raises(errors.OptionError, match="expected a finite number above 0"):
            make(bad)  # type: ignore[operator]


def test_steps_above_the_largest_are_refused() -> None:
    with pytest.raises(errors.OptionError, match=r"first step size is 2; expected at most 1"):
        check_step_size(StepSize.harmonic(2.0, 1.0), 1.0)
    with pytest.raises(errors.OptionError, match="by visits"):
        check_step_size(StepSize.visits(2.0), per_pair=False)
