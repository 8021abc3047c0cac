r"""Annealing: a follower whose lambda falls over the outer iterations.

At a small lambda the follower hardly reacts to most changes of x, and F has flat parts and many local optima; at a larger one
it is smoother, and another function. A run may begin with the latter and end with the former:

    lambda_t = lambda (initial / lambda)^(1 - t / (share T))   for t < share T,   then lambda,

where lambda is the follower's own, which the problem is about. In iteration t follower and estimator work with lambda_t; what
a run reports of the problem, its leader_return, constraints, and everything after it, belongs to lambda. (The follower's distance
from its optimum is that from the optimum at lambda_t.) Warm starts stay: values of another lambda are a start like those of
another x. The schedule is a function of t, so a checkpoint has nothing to keep of it; it is part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import check_number, check_regularization
from followers import TrajectoryOracle


class Annealing(WithArguments):
    """A geometric fall (or rise) of the follower's lambda to its own value.

    Args:
        initial: lambda of the first iteration.
        share: of the iterations, in (0, 1], after which it has arrived.

    Raises:
        RegularizationError: ``initial`` is not positive and finite.
        OptionError: a share that is not in (0, 1].
    """

    def __init__(self, initial: float, share: float = 0.8):
        self.initial = check_regularization(initial)
        self.share = check_number("share", share, maximum=1.0, above=0.0)

    def at(self, iteration: int, iterations: int, final: float) -> float:
        """Lambda in one of so many iterations, for a follower whose own is ``final``."""
        left = 1.0 - iteration / (self.share * iterations)
        return final if left <= 0.0 else final * float((self.initial / final) ** left)


#: (iteration, iterations) -> lambda.
LambdaSchedule = Callable[[int, int], float]


def check_schedule(value: Any) -> Annealing | LambdaSchedule | None:
    """A schedule of lambda, or None.

    Raises:
        OptionError: something else.
    """
    if value is None or isinstance(value, Annealing) or (callable(value) and not isinstance(value, type)):
        return value
    raise OptionError(
        f"regularization_schedule is {value!r}; expected leaders.Annealing(0.1), or a function of (iteration, iterations) that "
        "returns lambda."
    )


def check_annealable(schedule: Annealing | LambdaSchedule | None, oracle: TrajectoryOracle) -> None:
    """Refuse a schedule for a follower whose lambda cannot change.

    Raises:
        UnsupportedError: naming those whose can.
    """
    follower = oracle.follower
    if schedule is not None and not (follower.anneals and follower.regularization is not None):
        raise UnsupportedError(
            f"regularization_schedule changes lambda from response to response, and that of {type(follower).__name__} is fixed; "
            "use SoftPolicyIteration, SoftValueIteration, SoftQLearning, NaturalPolicyGradient, VanillaPolicyGradient, "
            "SoftDQNFollower or SACFollower with followers.TrajectoryOracle, or leave the schedule out."
        )
    if schedule is not None and oracle.core.met_regularization is not None:
        raise UnsupportedError(
            "regularization_schedule changes the lambda of one follower, and those it meets keep theirs; make runs at several "
            "lambdas, each from the x where the one before ended (x0=)."
        )


def scheduled(schedule: Annealing | LambdaSchedule, iteration: int, iterations: int, final: float) -> float:
    """Lambda in one iteration.

    Raises:
        OptionError: a function returned something that is none.
    """
    if isinstance(schedule, Annealing):
        return schedule.at(iteration, iterations, final)
    found: Any = schedule(iteration, iterations)
    if isinstance(found, (bool, np.bool_)) or not isinstance(found, (int, float, np.number)) or not 0.0 < found < np.inf:
        raise OptionError(f"regularization_schedule({iteration}, {iterations}) returned {found!r}; expected lambda > 0.")
    return float(found)
