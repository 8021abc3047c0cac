from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import leaders
from bocmdp_gym.docstrings import argument_help
from bocmdp_gym.errors import OptionError, UnknownOptionError
from leaders import AMD, HPGD, ExactGradient, FirstOrder, Leader, ZeroOrder
from leaders.gradients import CriticEstimator, Estimate, ExactEstimator, PolicyEstimator
from leaders.gradients.registry import ESTIMATORS
from leaders.leaders import LeaderByName, estimator_options
from leaders.updates import Update
from tests.registries import restored

BY_NAME = [HPGD, ExactGradient, AMD, FirstOrder, ZeroOrder]


@pytest.mark.parametrize("kind", BY_NAME)
def test_every_option_is_in_the_signature_and_explained(kind: type[LeaderByName]) -> None:
    parameters = inspect.signature(kind).parameters
    options = {name for estimator in kind.kinds.values() for name in estimator_options(estimator)}
    assert options | {"regularization"} | inspect.signature(Update).parameters.keys() <= parameters.keys()
    about = argument_help(kind)
    assert about.keys() == parameters.keys()
    assert all(about.values())
    defaults = {name: p.default for name, p in parameters.items()}
    for name, p in estimator_options(next(iter(kind.kinds.values()))).items():
        assert defaults[name] == (None if kind is HPGD else p.default)


def test_options_reach_estimator_and_update() -> None:
    leader = HPGD(0.2, 50, "critic", hidden=(4,), estimator_learning_rate=1e-2, regularization=0.3, optimizer="Adam", eps=1e-6)
    assert isinstance(leader.estimator, CriticEstimator)
    assert (leader.estimator.env_steps, leader.estimator.learning_rate) == (50, 1e-2)
    assert leader.estimator.requested_regularization == 0.3
    assert (leader.update.learning_rate, leader.update.max_gradient_norm, leader.update.optimizer_name) == (0.2, 1.0, "Adam")
    assert ZeroOrder().update.learning_rate == 0.1
    assert AMD(0.3, 7).estimator.sweeps == 7  # type: ignore[attr-defined]
    assert ExactGradient(max_gradient_norm=None).update.max_gradient_norm is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HPGD(learing_rate=0.1), "HPGD has no option 'learing_rate'. Did you mean 'learning_rate'"),
        (lambda: AMD(sweps=3), "Did you mean 'sweeps'"),
        (lambda: HPGD(momentun=0.5), "Did you mean 'momentum'"),
        (lambda: HPGD(optimizer="Adam", momentum=0.5), "HPGD has no option 'momentum'"),
        (
            lambda: HPGD(hidden=(3,)),
            "hidden is an option of estimator='td' or estimator='critic', not of estimator='auto'",
        ),
        (lambda: HPGD(estimator="critc"), "Did you mean 'critic'"),
        (lambda: ExactGradient(estimator="exact"), "ExactGradient has no option 'estimator'"),
        (lambda: HPGD(0.5, 100, "critic", (3,)), "4 arguments are given without their names"),
        (lambda: HPGD(0.5, learning_rate=1.0), "learning_rate is given twice"),
        (lambda: HPGD(momentum=-1.0), "momentum"),
        (lambda: HPGD(env_steps=0), "env_steps is 0"),
        (lambda: Leader(ExactEstimator, Update(1.0)), "Make an instance of it"),  # type: ignore[arg-type]
        (lambda: Leader(Update(1.0), ExactEstimator()), "estimator is Update"),  # type: ignore[arg-type]
    ],
)
def test_what_a_leader_does_not_take_is_refused(make: Callable[[], Leader], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_an_unknown_keyword_is_a_type_error_too() -> None:
    with pytest.raises(TypeError):
        HPGD(learing_rate=0.1)
    with pytest.raises(UnknownOptionError):
        HPGD(learing_rate=0.1)


MADE: list[Leader] = [
    HPGD(),
    HPGD(0.5, 10, "critic", hidden=(4,)),
    HPGD(0.1, 20, max_gradient_norm=None, optimizer="Adam", schedule="cosine", eps=1e-6),
    *(HPGD(estimator=name, regularization=0.1) for name in sorted(ESTIMATORS)),
    AMD(sweeps=3),
    ExactGradient(tolerance=1e-8, projection=abs),
    FirstOrder(0.1, "auto", two_sided=False),
    ZeroOrder(smoothing=0.5),
    Leader(ExactEstimator(0.1), Update(1.0, optimizer=torch.optim.Adam)),
    *(Leader(kind(), Update(1)) for kind in ESTIMATORS.values()),
]


@pytest.mark.parametrize("leader", MADE, ids=repr)
def test_reprs_can_be_pasted_back(leader: Leader) -> None:
    names = {name: value for value in (*vars(leaders).values(), *ESTIMATORS.values()) if (name := getattr(value, "__name__", ""))}
    names |= {"ExactEstimator": ExactEstimator, "Update": Update, "Adam": torch.optim.Adam, "abs": abs}
    again = eval(repr(leader), names)
    assert type(again) is type(leader)
    assert repr(again) == repr(leader)
    assert repr(again.estimator) == repr(leader.estimator)
    assert repr(again.update) == repr(leader.update)
    assert repr(copy.deepcopy(leader)) == repr(leader)


def test_leaders_print_as_what_makes_them() -> None:
    for text in ("HPGD(learning_rate=0.5, env_steps=10, estimator='critic', hidden=(4,))", "AMD()", "ZeroOrder(smoothing=0.5)"):
        assert repr(eval(text)) == text
    assert repr(Leader(ExactEstimator(), Update(1))) == "Leader(estimator=ExactEstimator(), update=Update(learning_rate=1))"


@pytest.mark.parametrize("kind", [*ESTIMATORS.values(), ExactEstimator, partial(Update, 1.0), Leader])
def test_misspelt_options_are_refused(kind: Any) -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean"):
        kind(**{f"{list(inspect.signature(kind).parameters)[1]}x": None})


def test_a_subclass_has_its_own_signature() -> None:
    class Mine(HPGD):
        """Mine."""

        def __init__(self, rate: float):
            super().__init__(rate, env_steps=10)

    assert list(inspect.signature(Mine).parameters) == ["rate"]
    assert Mine(0.3).update.learning_rate == 0.3
    assert repr(Mine(0.3)) == "Mine(rate=0.3)"
    assert Mine.__doc__ == "Mine."


class Toy(PolicyEstimator):
    """A toy.

    Args:
        scale: what it is multiplied with.
        regularization: lambda.
    """

    def __init__(self, scale: float = 2.0, regularization: float | None = None):
        super().__init__(regularization)
        self.scale = scale

    def estimate_policy(self, oracle: Any, policy: Any, x: Any, context: Any, rng: Any) -> Estimate:
        return Estimate(self.scale * x, 0.0)


def test_a_registered_estimator_is_one_of_hpgd_s() -> None:
    with restored():
        leaders.register_estimator("toy", Toy)
        leaders.register_estimator("toy", Toy)
        assert HPGD(estimator="toy", scale=3.0).estimator.scale == 3.0  # type: ignore[attr-defined]
        assert "scale" in inspect.signature(HPGD).parameters
        assert "what it is multiplied with (toy; 2.0 if None)" in str(HPGD.__doc__)
        with pytest.raises(OptionError, match="scale is an option of estimator='toy'"):
            HPGD(scale=3.0)
    assert "toy" not in ESTIMATORS
    assert "scale" not in inspect.signature(HPGD).parameters


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("critic", Toy, "another estimator is called 'critic'"),
        ("my-toy", Toy, "lower-case words with underscores"),
        ("toy", Toy(), "expected a class derived from"),
        ("toy", PolicyEstimator, "expected a class derived from"),
        ("toy", dict, "expected a class derived from"),
    ],
)
def test_names_that_cannot_be_given_are_refused(name: str, kind: Any, message: str) -> None:
    with restored(), pytest.raises(OptionError, match=message):
        leaders.register_estimator(name, kind)
