"""Checks of what `leaders.optimize` and its relatives take, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import as_integer, check_flag, check_function, check_instance, check_number
from followers import TrajectoryOracle
from leaders.checkpoints import Checkpoints
from leaders.constraints import Constraint
from leaders.gradients import Estimator
from leaders.leaders import Leader
from leaders.sampled_constraints import SampledConstraint


def check_kind(name: str, value: Any, kind: type[Any], example: str, others: tuple[type[Any], ...] = ()) -> None:
    """Refuse what is not of a kind: a class instead of an instance, or swapped arguments (one of ``others``).

    Raises:
        OptionError: naming what was got.
    """
    if isinstance(value, kind):
        return
    got = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
    hint = " Leader and follower seem to be swapped." if isinstance(value, others) else ""
    raise OptionError(f"{name} is {got}; expected a {kind.__name__}, for example {example}.{hint}")


def check_options(
    *,
    loss: Any = None,
    constraints: Any = (),
    constraint_penalty: Any = 1.0,
    oracle: Any = TrajectoryOracle,
    callback: Any = None,
    checkpoints: Any = None,
    resume: Any = False,
    progress: Any = None,
) -> None:
    """Refuse options of a run that are not what they should be.

    Raises:
        OptionError: naming the option.
    """
    if loss is not None:
        check_function("loss", loss, "x, policy, context")
    if not isinstance(constraints, Sequence) or not all(isinstance(one, (Constraint, SampledConstraint)) for one in constraints):
        raise OptionError(f"constraints is {constraints!r}; expected a list of leaders.Constraint or leaders.SampledConstraint.")
    check_number("constraint_penalty", constraint_penalty, above=0.0)
    if not callable(oracle) or (isinstance(oracle, type) and not issubclass(oracle, TrajectoryOracle)):
        raise OptionError(f"oracle is {oracle!r}; expected TrajectoryOracle, or a function of (env, follower) that makes one.")
    if callback is not None:
        check_function("callback", callback, "progress")
    if checkpoints is not None:
        check_instance("checkpoints", checkpoints, Checkpoints)
    check_flag("resume", resume)
    if progress is not None:
        check_flag("progress", progress)


def check_period(callback_every: Any, default: int) -> int | timedelta:
    """How often a callback is called: iterations, or a time.

    Raises:
        OptionError: neither a positive whole number, a positive timedelta, nor None.
    """
    if callback_every is None:
        return default
    number = as_integer(callback_every)
    if (number is not None and number > 0) or (isinstance(callback_every, timedelta) and callback_every > timedelta(0)):
        return callback_every if number is None else number
    raise OptionError(
        f"callback_every is {callback_every!r}; expected a positive number of iterations, or a time, "
        "datetime.timedelta(seconds=10)."
    )


def check_estimator(name: str, value: Any) -> Estimator:
    """An estimator, or that of a leader.

    Raises:
        OptionError: neither.
    """
    if isinstance(value, Leader):
        return value.estimator
    if isinstance(value, Estimator):
        return value
    hint = " Make an instance of it." if inspect.isclass(value) and issubclass(value, (Leader, Estimator)) else ""
    raise OptionError(f"{name} is {value!r}; expected an estimator or a leader, such as leaders.HPGD().{hint}")


def generator(seed: Any) -> np.random.Generator:
    """A generator from a seed; a generator as it is.

    Raises:
        OptionError: neither a whole number of at least 0 nor a generator.
    """
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"seed is {seed!r}; expected a whole number, at least 0.") from error
