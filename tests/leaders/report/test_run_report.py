from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym import configurable
from bocmdp_gym.errors import FolderError, ReportWarning
from leaders.evaluate import main as evaluate
from leaders.history import COLUMNS
from leaders.report import run_report
from leaders.report.__main__ import main as report
from leaders.report.outcomes import Outcomes, Side
from leaders.report.run_report import meaning
from leaders.train import main as train
from leaders.train import parse

SMALL = ["--iterations", "6", "--evaluate-every", "2", "--no-progress"]
ROOMS = ["four-rooms", "--leader", "exact", "--regularization", "0.05", *SMALL]
RANDOM = ["random-mdp", "--n-states", "5", "--leader", "exact", "--regularization", "0.5", *SMALL]


class _Text(HTMLParser):
    """The texts of a page, and what it takes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.sources, self.open = "", list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.sources += [value or "" for name, value in attrs if name == "src"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += f" {data}"


def read_page(path: Path) -> _Text:
    page = _Text()
    page.feed(path.read_text())
    assert not page.open
    page.text = " ".join(page.text.split()).replace("−", "-")
    return page


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    assert train([*ROOMS, "--out", str(out)]) == 0
    return out


def test_a_run_leaves_a_page_that_needs_nothing_else(rooms: Path) -> None:
    page = read_page(rooms / "report.html")
    assert len(page.sources) == 3  # the curve, and the rooms before and after
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert page.sources[1] != page.sources[2]
    for part in ("Learning curve", "Before and after", "Who gains and who loses", "Metrics", "Versions", "leader_return"):
        assert part in page.text
    command = re.search(r"The same run again (python -m leaders.train .*?) Metrics", page.text)
    assert command is not None
    assert parse(shlex.split(command[1])[3:]).fingerprint() == parse(ROOMS).fingerprint()


def test_who_gains_and_who_loses_is_exact(rooms: Path) -> None:
    """Compared with the model's own returns, which the report does not call."""
    summary = json.loads((rooms / "summary.json").read_text())
    core = configurable(gym.make("bocmdp/FourRooms-v0"))
    found = []
    for name in ("x0", "x"):
        x = np.array(summary[name])
        solution = core.model.solve(x, 0.05)
        mdps = core.model.configure(x)
        leader = mdps.policy_return(solution.policy).numpy()
        found.append((leader, (mdps.initial * solution.value).sum(-1).numpy()))
    page = read_page(rooms / "report.html")
    for context in range(2):
        line = re.search(rf" {context} 0\.5000 (\S+) (\S+) (\w+) \S+ (\S+) (\S+) (\w+) ", page.text)
        assert line is not None
        for side, texts in enumerate((line.groups()[:3], line.groups()[3:])):
            before, after = (float(found[i][side][context]) for i in (0, 1))
            assert [float(text) for text in texts[:2]] == pytest.approx([before, after], rel=2e-3)
            assert texts[2] == ("gains" if after > before else "loses")


def test_the_report_is_written_again_as_it_was(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(rooms, tmp_path / "copy")
    written = (tmp_path / "copy" / "report.html").read_text()
    (tmp_path / "copy" / "report.html").unlink()
    assert report([str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "copy" / "report.html")
    assert (tmp_path / "copy" / "report.html").read_text() == written


def test_an_interrupted_run_has_a_report_and_a_resumed_one_another(tmp_path: Path) -> None:
    assert train([*RANDOM, "--checkpoint-every", "4", "--out", str(tmp_path / "whole")]) == 0
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (cut / "summary.json", cut / "report.html", *(cut / "checkpoints").glob("*-000000006.*")):
        path.unlink()
    assert report([str(cut)]) == 0
    page = read_page(cut / "report.html")
    assert "not finished: what follows is its newest checkpoint, after 4 of 6 iterations" in page.text
    assert train([*RANDOM, "--checkpoint-every", "4", "--out", str(cut), "--resume"]) == 0
    pages = [
        read_page(tmp_path / name / "report.html").text.split("Who gains")[1].split("seconds")[0] for name in ("cut", "whole")
    ]
    assert pages[0] == pages[1]


def test_nothing_of_an_old_run_is_in_the_report_of_the_next(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train([*RANDOM, "--out", str(out)]) == 0
    assert evaluate([str(out), "--env-steps", "200"]) == 0
    assert len(read_page(out / "report.html").sources) == 4  # the evaluation as well
    assert train([*RANDOM, "--out", str(out), "--overwrite", "--seed", "1"]) == 0
    assert not (out / "evaluation.json").exists()
    assert len(read_page(out / "report.html").sources) == 3


MINE = """
import gymnasium as gym
import numpy as np
import torch
from bocmdp_gym.wrappers import LeaderReward

class Broken(gym.Wrapper):
    def render(self):
        raise RuntimeError("<b>no</b> brush")

class Blind(gym.Wrapper):
    metadata = {"render_modes": ["human"]}

def make(continuous=False, broken=False, blind=False, **options):
    env = gym.make("CartPole-v1", max_episode_steps=20, **options)
    spot = lambda x, observations, actions, context: x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2))
    wish = lambda x, observations, actions, context: -((observations[:, 0] - 1.0) ** 2)
    if continuous:
        from bocmdp_gym.wrappers import ContextWrapper
        space = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
        env = ContextWrapper(env, space=space, sample=lambda rng: rng.random(2))
    env = LeaderReward(env, bonus=spot, leader_space=2, leader_reward=wish, discount=0.9)
    return Broken(env) if broken else Blind(env) if blind else env

gym.register("mine/Pole-v0", "mine_pole:make", disable_env_checker=True)
"""


PPO = {"n_steps": 16, "batch_size": 8, "warm_start": False}


@pytest.fixture
def pole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a learning follower in an environment of a user's own; returns the run's folder."""
    (tmp_path / "mine_pole.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)

    def run(**options: Any) -> Path:
        follower = ["--follower", "ppo", "--follower-steps", "16", "--follower-options", json.dumps(PPO)]
        custom = ["custom", "--id", "mine/Pole-v0", "--module", "mine_pole", "--options", json.dumps(options), *follower]
        leader = ["--leader", "zero-order", "--env-steps", "40", "--exact", "False"]
        assert train([*custom, *leader, *SMALL, "--out", str(tmp_path / "run")]) == 0
        return tmp_path / "run"

    yield run
    gym.registry.pop("mine/Pole-v0", None)
    sys.modules.pop("mine_pole", None)


def test_a_run_without_exact_values(pole: Any) -> None:
    """A follower that learns, in a wrapper of the user's own: sampled at first, measured after an evaluation, and filmed."""
    out = pole()
    page = read_page(out / "report.html")
    assert "as sampled in the first and the last 10% of the iterations" in page.text
    assert len(page.sources) == 3
    assert evaluate([str(out), "--env-steps", "60", "--module", "mine_pole", "--video", "--before"]) == 0
    page = read_page(out / "report.html")
    assert "Fresh followers and episodes" in page.text
    found = json.loads((out / "evaluation.json").read_text())
    assert f"{found['after'][0]['follower_value']:.4g}"[:5] in page.text
    assert [source[5:14] for source in page.sources] == ["image/png"] * 3 + ["image/gif"] * 2 + ["image/png"]


def test_contexts_that_are_not_finitely_many_are_one_line(pole: Any) -> None:
    page = read_page(pole(continuous=True) / "report.html")
    assert re.search(r"difference all 1 -?[\d.]+ -?[\d.]+ ", page.text)


def test_a_picture_that_fails_is_told_as_text(pole: Any) -> None:
    out = pole(broken=True)
    assert "No picture: drawing it failed (RuntimeError: <b>no</b> brush)." in read_page(out / "report.html").text
    assert "<b>no" not in (out / "report.html").read_text()


def test_an_environment_without_pictures_says_so(pole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = pole(blind=True)
    text = "mine/Pole-v0 has no render mode 'rgb_array' (its metadata names ['human'])"
    assert f"No picture: {text}." in read_page(out / "report.html").text
    for option in ("--video", "--before"):
        assert evaluate([str(out), "--module", "mine_pole", option]) == 2
        assert f"UnsupportedError: {text}" in capsys.readouterr().err
    assert not (out / "evaluation.json").exists()


def test_a_report_that_cannot_be_written_is_a_warning(
    rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and evaluation end well without it, and say how to write it; which then works."""
    out = tmp_path / "run"
    write = run_report.write_atomically

    def full(path: Path, content: Any) -> None:
        raise FolderError(28, f"cannot write {path}: No space left on device")

    monkeypatch.setattr(run_report, "write_atomically", full)
    with pytest.warns(ReportWarning, match=r"report\.html could not be written \(FolderError.*No space left") as warned:
        assert train([*ROOMS, "--out", str(out)]) == 0
    assert str(warned[0].message).endswith(f"python -m leaders.report {out}")
    assert f"see {out / 'summary.json'}" in capsys.readouterr().out
    with pytest.warns(ReportWarning):
        assert evaluate([str(out), "--env-steps", "100"]) == 0
    assert (out / "evaluation.json").exists()
    assert not (out / "report.html").exists()
    monkeypatch.setattr(run_report, "write_atomically", write)
    assert report([str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["x"] == json.loads((rooms / "summary.json").read_text())["x"]


def test_what_is_no_run_is_named(tmp_path: Path, rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path)]) == 2
    assert "neither summary.json nor a checkpoint" in capsys.readouterr().err
    shutil.copytree(rooms, tmp_path / "run")
    (tmp_path / "run" / "history.npz").write_bytes(b"not a history")
    assert report([str(tmp_path / "run")]) == 2
    assert "DamagedError" in capsys.readouterr().err
    (tmp_path / "run" / "history.npz").unlink()
    (tmp_path / "run" / "evaluation.json").write_text("[1]")
    assert report([str(tmp_path / "run")]) == 0  # exact values ask no evaluation
    (tmp_path / "run" / "evaluation.png").touch()
    assert report([str(tmp_path / "run")]) == 2
    assert "run leaders.evaluate again" in capsys.readouterr().err


def test_every_metric_is_explained() -> None:
    for name, about in COLUMNS.items():
        assert meaning(name) == about
    assert meaning("slack_error_paid") == COLUMNS["slack_error_NAME"]
    assert meaning("slack_paid") == COLUMNS["slack_NAME"]
    assert meaning("leader_return_3") == COLUMNS["leader_return_XI"]
    assert meaning("mine") == ""


def test_shares_are_of_returns_that_are_shared() -> None:
    def share(*returns: float) -> Any:
        leader, follower = Side(*returns[:2]), Side(*returns[2:])
        return run_report._shares(Outcomes([], leader, follower, ""))

    assert share(1.0, 3.0, 1.0, 1.0) == (0.5, 0.25)
    assert share(1.0, -3.0, 1.0, 1.0) is None
    assert share(0.0, 1.0, 0.0, 1.0) is None
    assert run_report._shares(None) is None
