"""A follower and an estimator from elsewhere, and the settings of leaders."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import followers
import leaders
from bocmdp_gym.errors import OptionError
from followers.registry import FOLLOWERS
from leaders.gradients import MonteCarloEstimator
from leaders.settings import commands, settings_from_values
from leaders.settings.run import LEADERS, _follower_option
from leaders.train import main, parse
from tests.registries import restored

RUN = ["--iterations", "2", "--env-steps", "1000", "--regularization", "0.05", "--no-progress"]


class ToyFollower(followers.SoftPolicyIteration):
    """Plans, with a budget that it does not need."""

    def __init__(self, regularization: float, sweeps: int = 3, shift: float = 0.0):
        super().__init__(regularization)
        self.sweeps, self.shift = sweeps, shift


class ToyEstimator(MonteCarloEstimator):
    """The Monte-Carlo estimate, times a number.

    Args:
        env_steps: steps per estimate.
        factor: what the estimate is multiplied with.
        horizon: no setting of the run, but of the environment.
        regularization: lambda.
    """

    def __init__(
        self, env_steps: int = 100, factor: float = 1.0, horizon: int | None = None, regularization: float | None = None
    ):
        super().__init__(env_steps, regularization=regularization)
        self.factor, self.horizon = factor, horizon

    def estimate_policy(self, *arguments: Any) -> Any:
        estimate = super().estimate_policy(*arguments)
        estimate.gradient *= self.factor
        return estimate


def test_parts_from_elsewhere_run_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with restored():
        followers.register("toy-plan", ToyFollower, budget="sweeps")
        leaders.register_estimator("toy_carlo", ToyEstimator)
        toys = ["--follower", "toy-plan", "--follower-steps", "4", "--follower-options", '{"shift": 1.5}']
        command = ["four-rooms", *toys, "--estimator", "toy-carlo", *RUN]
        settings = parse([*command, "--factor", "0.5", "--estimator-horizon", "7"])
        follower, estimator = settings.make_follower(), settings.make_leader().estimator
        assert isinstance(follower, ToyFollower)
        assert (follower.sweeps, follower.shift, follower.regularization) == (4, 1.5, 0.05)
        assert isinstance(estimator, ToyEstimator)
        assert (estimator.factor, estimator.horizon, estimator.env_steps) == (0.5, 7, 1000)
        found = []
        for factor in ("1.0", "-1.0"):
            out = tmp_path / factor
            assert main([*command, "--factor", factor, "--out", str(out)]) == 0
            summary = json.loads((out / "summary.json").read_text())
            found.append(np.array(summary["x"]))
            again = settings_from_values(summary["name"], summary["settings"])
            assert again.fingerprint() == parse([*command, "--factor", factor]).fingerprint()
        assert not np.array_equal(*found)
        assert main(["four-rooms", *RUN, "--factor", "2"]) == 2
        assert "--factor is an option of hpgd with the toy-carlo estimator" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            parse(["four-rooms", "--help"])
        assert "What the estimate is multiplied with (toy-carlo; 1.0 if not given)" in " ".join(
            capsys.readouterr().out.replace("│", " ").split()
        )
    with pytest.raises(SystemExit):
        parse(command)


def test_a_module_is_imported_before_the_options_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts_of_mine.py").write_text(
        "import followers\nfollowers.register('mine', followers.SoftPolicyIteration, tolerance=1e-6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with restored():
        settings = parse(["four-rooms", "--module=parts_of_mine", "--follower", "mine"])
        assert settings.make_follower().tolerance == 1e-6  # type: ignore[attr-defined]
    sys.modules.pop("parts_of_mine")
    with restored():
        assert settings_from_values("four-rooms", {"module": "parts_of_mine", "follower": "mine"}).follower == "mine"
    sys.modules.pop("parts_of_mine")


@pytest.mark.parametrize("name", LEADERS)
def test_every_leader_has_a_name(name: str) -> None:
    leader = settings_from_values("four-rooms", {"leader": name, "learning_rate": 0.25, "schedule": "cosine"}).make_leader()
    assert type(leader) is LEADERS[name]
    assert leader.update.learning_rate == 0.25


@pytest.mark.parametrize("name", list(LEADERS["hpgd"].kinds))
def test_every_estimator_has_a_name(name: str) -> None:
    leader = settings_from_values("four-rooms", {"estimator": name.replace("_", "-"), "error_groups": None}).make_leader()
    assert type(leader.estimator) is LEADERS["hpgd"].kinds[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leader": "exact", "estimator": "critic"}, "leader exact has but one"),
        (
            {"leader": "amd", "follower": "ppo"},
            "would never be asked; leave it out, or use --leader hpgd or first-order",
        ),
        ({"leader": "exact", "rounds": 3}, "--rounds 3 would never be asked"),
        (
            {"levels": 4},
            "--levels is an option of hpgd with the multilevel estimator, not of hpgd with the auto",
        ),
        ({"smoothing": 1.0}, "--smoothing is an option of zero-order"),
    ],
)
def test_leaders_that_cannot_be_made_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings_from_values("four-rooms", values).make_leader()


def test_rounds_let_a_follower_play_with_the_others() -> None:
    values = {"leader": "zero-order", "follower": "soft-q-learning", "follower_steps": 500, "rounds": 3}
    follower = settings_from_values("road-tolls", values).make_follower()
    assert repr(follower) == "FictitiousPlay(follower=SoftQLearning(regularization=1.0, iterations=500), rounds=3)"


def test_followers_options_are_their_constructors(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--softmax-temperature", "0.2", "--normalize", "reward"]
    follower: Any = parse(["four-rooms", "--follower", "dqn", *options, *RUN]).make_follower()
    assert (follower.greedy, follower._temperature, follower._normalize) == (False, 0.2, "reward")
    soft: Any = parse(["four-rooms", "--follower", "soft-dqn", "--normalize", "observation", *RUN]).make_follower()
    assert (soft._normalize, soft.regularization) == ("observation", 0.05)
    with pytest.raises(SystemExit):
        parse(["four-rooms", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "instead of the best action alone; for algorithms that are greedy in Q-values (DQN, QRDQN) (dqn)." in shown
    for wrong, match in (
        (["--follower", "ppo", "--softmax-temperature", "0.1"], "an option of follower dqn, not of ppo"),
        (["--normalize", "both"], "option of follower soft-dqn and ppo and a2c and dqn, not of soft-policy-iteration"),
        (["--follower", "ppo", "--normalize", "both", "--follower-options", '{"normalize": "both"}'], "set by --normalize"),
    ):
        with pytest.raises(OptionError, match=match):
            parse(["four-rooms", *wrong, *RUN]).make_follower()


def test_the_registry_has_the_types_of_the_constructors() -> None:
    """It tells them without importing Stable-Baselines3."""
    typed = [(entry, name) for entry in FOLLOWERS.values() for name, kind in entry.options.items() if kind is not None]
    assert len(typed) == 5
    for entry, name in typed:
        told, asked = (_follower_option(one, name) for one in (entry, replace(entry, options={name: None})))
        assert (told.kind | None, told.default, told.spelling) == (asked.kind, asked.default, asked.spelling)
        assert told.help in ("", asked.help)  # "" where a base class has the text, which another follower tells
    options = {field.name: field.metadata.get("option") for field in fields(commands()["four-rooms"])}
    assert all(options[name].help for _, name in typed)


def test_a_registered_followers_options_join_the_command() -> None:
    with restored():
        followers.register("toy-plan", ToyFollower, options=["shift"])
        settings = parse(["four-rooms", "--follower", "toy-plan", "--shift", "1.5", *RUN])
        follower: Any = settings.make_follower()
        assert (follower.shift, follower.regularization) == (1.5, 0.05)
    with restored():
        followers.register("toy-plan", ToyFollower, options=["shift", "sweep"])
        with pytest.raises(OptionError, match="ToyFollower has no argument 'sweep'"):
            parse(["four-rooms", *RUN])
