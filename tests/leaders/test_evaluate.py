from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import OptionError
from followers import CallableFollower
from leaders.evaluate import evaluate, main
from leaders.objectives import Mean
from leaders.settings import settings_from_summary
from leaders.train import main as train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "run"
    options = ["--iterations", "150", "--leader", "exact", "--slip-probability", "0.44", "--no-progress", "--out", str(out)]
    assert train(["four-rooms", *options]) == 0
    return out


def test_a_run_is_evaluated_with_fresh_followers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "together" in printed
    assert "lambda is 2 times" in printed
    result, summary = json.loads((run / "evaluation.json").read_text()), json.loads((run / "summary.json").read_text())
    assert result["exact_leader_return"] == pytest.approx(summary["leader_return"], abs=1e-6)
    assert abs(result["leader_return"] - result["exact_leader_return"]) < 2.5 * result["leader_interval"]
    assert result["misjudged"]["1"] == pytest.approx(summary["leader_return"], abs=1e-6)
    assert result["misjudged"]["2"] != result["misjudged"]["1"]
    assert [c["context"] for c in result["after"]] == [0, 1]
    for after, before in zip(result["after"], result["before"], strict=True):
        assert after["follower_value"] != before["follower_value"]
        assert after["episodes"] > 100
    assert (run / "evaluation.png").stat().st_size > 1000


def test_one_follower_among_others_has_their_lambda(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Others play by one lambda, so that no table says what another one would do."""
    options = ["--n-skills", "2", "--levels", "5", "--iterations", "2", "--no-progress", "--out", str(tmp_path / "run")]
    assert train(["income-tax", *options]) == 0
    assert main([str(tmp_path / "run"), "--env-steps", "50"]) == 0
    assert "is 2 times" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["misjudged"] == {}


def test_settings_survive_the_summary(run: Path) -> None:
    settings = settings_from_summary(json.loads((run / "summary.json").read_text()))
    assert settings.name == "four-rooms"
    assert settings.goals == ((1, 9), (11, 11))
    assert settings.folder() == run


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "name": "four-room"}))
    assert main([str(tmp_path)]) == 2
    assert "Did you mean 'four-rooms'" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "settings": {**summary["settings"], "colour": 1}}))
    assert main([str(tmp_path)]) == 2
    assert "colour" in capsys.readouterr().err


def test_intervals_shrink_with_the_root_of_the_episodes(run: Path) -> None:
    settings = settings_from_summary(json.loads((run / "summary.json").read_text()))
    x = json.loads((run / "summary.json").read_text())["x"]
    few, many = (evaluate(settings, x, x, env_steps=n, factors=()) for n in (20_000, 320_000))
    assert few.after[1].leader_interval / many.after[1].leader_interval == pytest.approx(4.0, rel=0.2)


class Draws(ConfigurableEnv):
    """Episodes of one step, in which the leader gets spread * xi + noise + x; F(x) = spread * E xi + x, E xi = 1/3."""

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(self, continuous: bool, spread: float = 3.0, noise: float = 0.1):
        self.observation_space, self.action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(1)
        space: Any = gym.spaces.Box(0.0, 1.0, (1,), np.float64) if continuous else gym.spaces.Discrete(2)
        probabilities = None if continuous else [2 / 3, 1 / 3]
        self._setup_configuration(gym.spaces.Box(-9.0, 9.0, (1,), np.float64), space, 0.9, None, probabilities)
        self._spread, self._noise = spread, noise

    def sample_context(self, rng: np.random.Generator) -> Any:
        return rng.random(1) ** 2 if self.context_probabilities is None else super().sample_context(rng)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        xi = float(np.reshape(self.context, -1)[0])
        paid = self._spread * xi + self._noise * self.np_random.normal() + float(self.leader[0])
        return 0, 0.0, True, False, {"leader_reward": paid, "context": self.context}


class Settings:
    """What `evaluate` needs of a run's settings."""

    regularization = 1.0

    def __init__(self, env: Any):
        self._env = env

    def make_env(self) -> Any:
        return self._env

    def make_objective(self) -> Any:
        return Mean()

    def make_follower(self, regularization: float | None = None) -> Any:
        return CallableFollower(lambda observation: 0)


@pytest.mark.parametrize(("continuous", "noise"), [(True, 0.1), (True, 2.0), (False, 0.1), (False, 2.0)])
def test_intervals_cover_as_often_as_they_say(continuous: bool, noise: float) -> None:
    settings: Any = Settings(Draws(continuous, noise=noise))
    covered, gains, widths = 0, 0, []
    for seed in range(150):
        result = evaluate(settings, [0.5], [0.0], env_steps=8, contexts=30, seed=1000 + 10 * seed, factors=())
        covered += abs(result.leader_return - (3.0 / 3 + 0.5)) < result.leader_interval
        gains += abs(result.leader_gain - 0.5) < result.gain_interval
        widths.append(result.leader_interval)
    assert covered > 150 * 0.95 - 4 * (150 * 0.05 * 0.95) ** 0.5  # 4 standard errors of the count
    assert gains > 150 * 0.95 - 4 * (150 * 0.05 * 0.95) ** 0.5
    if continuous and noise < 1.0:
        assert np.mean(widths) == pytest.approx(2.045 * 3.0 * (4 / 45 / 30) ** 0.5, rel=0.15)  # var of U^2 is 4/45
    if not continuous:
        error = noise * ((4 / 9 + 1 / 9) / 8) ** 0.5
        assert np.mean(widths) == pytest.approx(2.2 * error, rel=0.1)  # no variance between contexts: all were taken


def test_one_draw_has_no_interval() -> None:
    settings: Any = Settings(Draws(True))
    one = evaluate(settings, [0.0], [0.0], env_steps=8, contexts=1, factors=())
    assert one.leader_interval == one.gain_interval == float("inf")
    finite: Any = Settings(Draws(False))
    single = evaluate(finite, [0.0], [0.0], env_steps=1, factors=())
    assert single.leader_interval == single.after[0].leader_interval == float("inf")
    still: Any = Settings(Draws(False, noise=0.0))
    assert evaluate(still, [0.0], [0.0], env_steps=8, factors=()).leader_interval == 0.0


def test_differences_are_paired_by_context() -> None:
    """Contexts differ by far more than x: their spread is no doubt about what x gained."""
    settings: Any = Settings(Draws(True, spread=1000.0))
    result = evaluate(settings, [0.5], [0.0], env_steps=8, factors=())
    assert result.leader_interval > 100
    assert result.gain_interval < 0.2
    assert result.leader_gain == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("how", ["module", "id", "both"])
def test_nothing_that_a_received_run_names_is_imported(
    how: str, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sender's module is on the path: it would be imported, and run."""
    sys.modules.pop("sent", None)
    (tmp_path / "sent.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nimport bocmdp_gym")
    monkeypatch.syspath_prepend(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    settings = {"regularization": 0.05, "iterations": 1}
    if how != "id":
        settings["module"] = "sent"
    settings["id"] = "bocmdp/FourRooms-v0" if how == "module" else "sent:bocmdp/FourRooms-v0"
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"name": "custom", "settings": settings}))
    for further in ([], ["--module", "json"], ["--module", "sent.sub"]):
        assert main([str(tmp_path), "--env-steps", "200", *further]) == 2
        errors = capsys.readouterr().err
        assert "has the module 'sent' imported" in errors
        assert "--module sent" in errors
        assert not (tmp_path / "ran").exists()
        assert "sent" not in sys.modules
    assert main([str(tmp_path), "--env-steps", "200", "--module", "sent"]) == 0
    assert (tmp_path / "ran").exists()


def test_two_modules_are_not_one(tmp_path: Path, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    settings = {"module": "json", "id": "sent:bocmdp/FourRooms-v0"}
    with pytest.raises(OptionError, match="'sent'"):
        settings_from_summary(summary | {"name": "custom", "settings": settings}, "json")


def test_no_file_that_a_received_run_names_is_read(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    with pytest.raises(OptionError, match="name of a file"):
        settings_from_summary(summary | {"settings": summary["settings"] | {"layout": "@/etc/hostname"}})


@pytest.mark.parametrize("file", ["evaluation.json", "evaluation.png"])
def test_a_folder_that_cannot_be_written_is_named(
    file: str, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "summary.json", tmp_path)
    (tmp_path / file).mkdir()  # as good as read-only
    assert main([str(tmp_path), "--env-steps", "200"]) == 2
    out, errors = capsys.readouterr()
    assert "together" in out
    assert errors.startswith(f"FolderError: cannot write {tmp_path / file}")


def test_other_things_than_a_run_are_named(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "summary.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    for x in ("abc", [1.0], [None] * len(summary["x"]), {}, 3):
        (tmp_path / "summary.json").write_text(json.dumps(summary | {"x": x}))
        assert main([str(tmp_path), "--env-steps", "200"]) == 2
        assert "Error: " in capsys.readouterr().err
    (tmp_path / "summary.json").write_bytes(b"[" * 100_000)
    assert main([str(tmp_path)]) == 2
