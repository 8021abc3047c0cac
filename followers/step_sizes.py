r"""Step sizes of stochastic followers: alpha = h / (n + n0), or alpha = h throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_flag, check_number


@dataclass(frozen=True, repr=False)
class StepSize(WithArguments):
    """A rule for step sizes; made by one of the three constructors below.

    Attributes:
        scale: h > 0.
        offset: n0; None for constant steps.
        per_pair: whether n counts the earlier updates of the same state-action pair, rather than all of them.

    Raises:
        OptionError: a scale or an offset that is not positive and finite.
    """

    scale: float
    offset: float | None
    per_pair: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_number("scale, h,", self.scale, above=0.0))
        if self.offset is not None:
            object.__setattr__(self, "offset", check_number("offset, n0,", self.offset, above=0.0))
        object.__setattr__(self, "per_pair", check_flag("per_pair", self.per_pair))

    @classmethod
    def constant(cls, scale: float) -> StepSize:
        """alpha = h: for ever following a moving target, at the price of noise that stays."""
        return cls(check_number("a constant step size", scale, above=0.0), None, False)

    @classmethod
    def harmonic(cls, scale: float, offset: float) -> StepSize:
        """alpha_t = h / (t + t0), t counting all updates (Proposition E.5: h >= 4 / (mu_min (1 - gamma)), t0 >= 4 h)."""
        return cls(check_number("h", scale, above=0.0), check_number("t0", offset, above=0.0), False)

    @classmethod
    def visits(cls, scale: float, offset: float | None = None) -> StepSize:
        """alpha = h / (n(s, a) + n0), n(s, a) counting the earlier updates of the pair; n0 = h if None (a first step of 1)."""
        scale = check_number("h", scale, above=0.0)
        return cls(scale, scale if offset is None else check_number("n0", offset, above=0.0), True)

    @property
    def first(self) -> float:
        """The first, largest, step."""
        return self.scale if self.offset is None else self.scale / self.offset

    def at(self, n: int) -> float:
        """The step after ``n`` earlier updates."""
        return self.scale if self.offset is None else self.scale / (n + self.offset)


def check_step_size(value: StepSize | float, largest: float = math.inf, *, per_pair: bool = True) -> StepSize:
    """A `StepSize`, from one or from the number that a constant one has.

    Args:
        value: what the user gave.
        largest: bound on every step.
        per_pair: whether steps per state-action pair make sense here.

    Raises:
        OptionError: steps that are not positive and finite, above ``largest``, or per pair where there are no pairs.
    """
    rule = value if isinstance(value, StepSize) else StepSize.constant(value)
    if rule.first > largest:
        raise OptionError(
            f"the first step size is {rule.first:.6g}; expected at most {largest:g}, beyond which the iteration may diverge. "
            "Lower h, or raise the offset in h / (n + offset)."
        )
    if rule.per_pair and not per_pair:
        raise OptionError(
            "step sizes by visits count state-action pairs, which this follower does not update one at a time; expected "
            "StepSize.constant or StepSize.harmonic."
        )
    return rule
