from __future__ import annotations

from typing import Any

import pytest

import followers
from bocmdp_gym.errors import OptionError
from followers.registry import FOLLOWERS, make_follower
from tests.registries import restored


@pytest.mark.parametrize("name", FOLLOWERS)
def test_every_name_makes_its_follower(name: str) -> None:
    follower = make_follower(name, regularization=0.1)
    assert isinstance(follower, followers.Follower)
    if FOLLOWERS[name].budget is not None:
        budget = FOLLOWERS[name].budget
        assert getattr(make_follower(name, 0.1, steps=777), str(budget)) == 777


def test_options_reach_the_constructor() -> None:
    follower = make_follower("soft-policy-iteration", 0.1, options={"tolerance": 1e-6})
    assert isinstance(follower, followers.SoftPolicyIteration)
    assert (follower.regularization, follower.tolerance) == (0.1, 1e-6)
    assert isinstance(make_follower("ppo", 0.1, options={"n_steps": 64}), followers.SB3Follower)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "soft-policy-iterations"}, "Did you mean 'soft-policy-iteration'"),
        ({"name": "soft-policy-iteration", "steps": 5}, "solves to a tolerance"),
        ({"name": "soft-policy-iteration", "options": {"tolerence": 1.0}}, "Did you mean 'tolerance'"),
        ({"name": "soft-q-learning", "options": {"iterations": 5}}, "set already"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_follower(**options, regularization=0.1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("My_Follower", followers.SoftPolicyIteration), {}, "lower-case words with hyphens"),
        (("ppo", followers.SoftPolicyIteration), {}, "another follower is called 'ppo'"),
        (("mine", 3), {}, "expected a class of followers"),
        (("mine", dict), {}, "dict is not a follower"),
        (("mine", followers.SoftQLearning), {"default_budget": 3}, "no budget is named"),
        (("mine", followers.SoftQLearning), {"options": "tolerance"}, r"expected names of arguments of mine's constructor"),
        (("mine", followers.SoftQLearning), {"budget": "iterations", "default_budget": 0}, "default_budget is 0"),
    ],
)
def test_names_that_cannot_be_given_are_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with restored(), pytest.raises(OptionError, match=message):
        followers.register(*arguments, **options)
