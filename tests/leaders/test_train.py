from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import leaders
from bocmdp_gym import configurable
from bocmdp_gym.registration import ENVIRONMENTS
from followers import CallableFollower
from leaders.settings import CustomSettings, commands
from leaders.train import main, parse
from leaders.training import _returns
from tests.leaders.test_evaluate import Draws
from tests.problems import principal_agent

SMALL = ["four-rooms", "--iterations", "30", "--env-steps", "500", "--evaluate-every", "10", "--no-progress"]


def test_a_run_leaves_a_complete_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--seed", "1", "--penalty-cost", "2", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["x"]) == 105
    assert summary["settings"]["penalty_cost"] == 2
    assert summary["iterations"] == 30
    assert "torch" in summary["versions"]
    rows = list(csv.DictReader((out / "progress.csv").read_text().splitlines()))
    assert [int(row["iteration"]) for row in rows] == [0, 10, 20, 29]
    assert all(np.isfinite(float(row["leader_return"])) for row in rows)
    for name in ("learning_curve.png", "penalty_map.png", "history.npz", "report.html"):
        assert (out / name).stat().st_size > 1000
    assert list(out.glob("events.out.tfevents.*"))
    assert "leader's return" in capsys.readouterr().out
    with np.load(out / "history.npz") as history:
        assert len(history["gradient_norm"]) == 30


def test_whole_numbers_may_be_written_as_floats(capsys: pytest.CaptureFixture[str]) -> None:
    settings = parse(["four-rooms", "--iterations", "1e4", "--env-steps", "2.0", "--contexts", "2e0", "--seed", "3"])
    assert (settings.iterations, settings.env_steps, settings.contexts, settings.seed) == (10_000, 2, 2, 3)  # type: ignore[attr-defined]
    assert parse(["four-rooms", "--contexts", "all"]).contexts == "all"
    for text in ("1.5", "many", "inf"):
        with pytest.raises(SystemExit):
            parse(["four-rooms", "--iterations", text])
    assert "1.5" in capsys.readouterr().err


def test_a_run_that_cannot_work_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused when leader, follower and environment are put together; the command that is mended needs no --overwrite."""
    out = tmp_path / "runs" / "mine"
    assert main([*SMALL, "--out", str(out), "--estimator", "multilevel", "--env-steps", "None"]) == 2
    assert "MultilevelEstimator stops its follower" in capsys.readouterr().err
    assert not out.parent.exists()
    assert main([*SMALL, "--iterations", "2", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["estimator"] == "MonteCarloEstimator(env_steps=500)"


def test_equal_commands_give_equal_x(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        assert main([*SMALL, "--out", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["x"])
    assert found[0] == found[1]


def test_an_old_run_is_kept_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    note = tmp_path / "run" / "notes.txt"
    assert main([*SMALL, "--out", out]) == 0
    note.write_text("mine")
    assert main([*SMALL, "--out", out]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*SMALL, "--out", out, "--overwrite", "--seed", "1"]) == 0
    assert note.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regularization", "0"], "RegularizationError"),
        (["--goals", "[[0, 0]]"], "inside a wall"),
        (["--iterations", "0"], "iterations is 0"),
        (["--env-steps", "0"], "env_steps is 0"),
        (["--optimizer", "sgd"], "Did you mean 'SGD'"),
        (["--layout", "@nowhere.txt"], "layout is to be read from the file nowhere.txt"),
        (["--out", "/proc/nowhere"], "cannot write"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in options else ["--out", str(tmp_path / "run")]
    assert main([*SMALL, *out, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, "--penalty-cots", "1"])
    assert stop.value.code == 2
    assert "--penalty-cost" in capsys.readouterr().err


def test_help_lists_the_commands_with_what_each_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, kind in commands().items():
        assert " ".join(f"{name} {kind.__doc__}".split()) in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "Expected one of"),
        (["four-room"], "Did you mean 'four-rooms'?"),
        (["-x"], "Unrecognized"),
        (["--seed=3", "four_rooms"], "four_rooms comes before its options: python -m leaders.train four_rooms --seed=3 ..."),
    ],
)
def test_what_names_no_command_is_refused(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(wrong)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_command_may_be_spelled_with_underscores() -> None:
    assert parse(["four_rooms", "--env-steps", "3"]).name == "four-rooms"


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["four-rooms", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--regularization", "--slip-probability", "--waypoint", "--bootstrap-truncated"):
        assert option in text


def test_any_registered_environment_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--iterations", "5", "--env-steps", "200", "--no-progress", "--out", str(tmp_path / "run")]
    custom = ["custom", "--id", "bocmdp/FourRooms-v0", "--module", "bocmdp_gym"]
    assert main([*custom, "--options", '{"penalty_cost": 2}', *options]) == 0
    assert main([*custom, "--options", "{penalty", *options, "--overwrite"]) == 2
    assert "not JSON" in capsys.readouterr().err
    assert main(["custom", "--id", "mine/Roads-v0", *options, "--overwrite"]) == 2
    assert "--module" in capsys.readouterr().err


ROOMS = "xxxxxx\nx    x\nx xx x\nx    x\nxxxxxx\n"
CELLS = ["--start", "1", "1", "--goals", "[[3, 4]]", "--waypoint", "3", "1", "--horizon", "30", "--regularization", "0.05"]


@pytest.fixture
def rooms(tmp_path: Path) -> list[str]:
    layout = tmp_path / "rooms.txt"
    layout.write_text(ROOMS)
    run = ["--iterations", "2", "--no-progress", "--out", str(tmp_path / "run")]
    return ["four-rooms", "--layout", f"@{layout}", *CELLS, *run]


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")  # few steps
@pytest.mark.parametrize(
    "options",
    [
        *(["--leader", leader] for leader in ("exact", "amd")),
        *(["--leader", leader, "--env-steps", "100"] for leader in ("hpgd", "zero-order")),
        ["--estimator", "geometric", "--samples", "100"],
        ["--estimator", "critic", "--env-steps", "100"],
        ["--estimator", "pooled", "--env-steps", "100", "--share-contexts", "True"],
        ["--estimator", "td", "--env-steps", "100", "--td-rate", "0.3"],
        ["--estimator", "multilevel", "--levels", "4", "--samples", "100", "--follower", "soft-q-learning"],
        ["--schedule", "cosine", "--optimizer", "Adam"],
        ["--follower", "soft-value-iteration"],
        ["--follower", "linear-programming", "--leader", "zero-order"],
        *(["--follower", n, "--follower-steps", "200"] for n in ("soft-q-learning", "vanilla-policy-gradient")),
        *(["--follower", n, "--follower-steps", "200"] for n in ("soft-dqn", "a2c")),
        ["--follower", "dqn", "--follower-steps", "200", "--leader", "zero-order"],
        ["--follower", "natural-policy-gradient", "--follower-steps", "5", "--leader", "zero-order"],
        ["--follower", "ppo", "--follower-steps", "200", "--leader", "zero-order"],
    ],
)  # fmt: skip
def test_leaders_and_followers_combine(rooms: list[str], options: list[str], tmp_path: Path) -> None:
    assert main([*rooms, *options]) == 0
    assert np.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["leader_return"])


def test_an_impossible_pair_is_refused_with_the_alternative(rooms: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*rooms, "--estimator", "multilevel", "--follower", "ppo"]) == 2
    assert "use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--leader", "exact", "--follower", "ppo"], "would never be asked"),
        (["--leader", "exact", "--samples", "5"], "--samples is an option of"),
        (["--estimator", "geometric", "--env-steps", "5"], "--env-steps is an option of"),
        (["--share-contexts", "True"], "--share-contexts is an option of hpgd with the pooled estimator"),
        (["--seed", "-1"], "seed is -1"),
        (["--contexts", "0"], "contexts is 0"),
        (["--optimizer", "SparseAdam"], "unknown optimizer"),
    ],
)
def test_options_without_effect_are_refused(
    rooms: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*rooms, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_budget_for_a_planner_is_refused(rooms: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*rooms, "--follower-steps", "10"]) == 2
    assert "solves to a tolerance" in capsys.readouterr().err


@pytest.mark.parametrize("environment", ["principal-agent", "dynamic-mechanism", "meta-rl"])
def test_every_environment_has_a_command(environment: str, tmp_path: Path) -> None:
    options = ["--iterations", "3", "--no-progress", "--regularization", "0.2", "--leader", "exact"]
    assert main([environment, *options, "--out", str(tmp_path / "run")]) == 0
    assert np.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["leader_return"])
    assert (tmp_path / "run" / "allocation.png").exists() == (environment == "dynamic-mechanism")


def test_every_registered_environment_has_a_command() -> None:
    offered = {kind().env_id for kind in commands().values() if not issubclass(kind, CustomSettings)}
    assert {entry.id for entry in ENVIRONMENTS} == offered


def test_constraints_of_an_environment_are_kept(tmp_path: Path) -> None:
    """A budget on what is paid: at a price of 0 a principal that ignored it would pay without end."""
    options = ["principal-agent", "--budget-on", "paid", "--budget", "0.5", "--regularization", "0.1", "--leader", "exact"]
    run = ["--contexts", "all", "--learning-rate", "0.05", "--optimizer", "Adam", "--iterations", "150", "--no-progress"]
    assert main([*options, *run, "--evaluate-every", "150", "--out", str(tmp_path / "run")]) == 0
    x = json.loads((tmp_path / "run" / "summary.json").read_text())["x"]
    core = configurable(principal_agent(budget_on="paid", budget=0.5))
    assert float(core.spending(x, 0.1).max()) < 0.55
    with np.load(tmp_path / "run" / "history.npz") as history:
        assert abs(history["slack_budget"][-1]) < 0.05


def test_random_models_can_be_trained_on(tmp_path: Path) -> None:
    options = ["--iterations", "3", "--env-steps", "200", "--no-progress", "--regularization", "0.5"]
    for seed in ("0", "1"):
        assert main(["random-mdp", "--env-seed", seed, "--n-states", "6", *options, "--out", str(tmp_path / seed)]) == 0
    x0 = [json.loads((tmp_path / seed / "summary.json").read_text())["leader_return"] for seed in ("0", "1")]
    assert x0[0] != x0[1]


def test_tax_design_by_exact_gradients_and_by_the_critic(tmp_path: Path) -> None:
    options = ["tax-design", "--grid-size", "11", "--horizon", "20", "--wage", "2", "--iterations", "2", "--no-progress"]
    assert main([*options, "--out", str(tmp_path / "exact")]) == 0
    summary = json.loads((tmp_path / "exact" / "summary.json").read_text())
    assert len(summary["x"]) == 4
    assert np.isfinite(summary["leader_return"])
    critic = ["--leader", "hpgd", "--estimator", "critic", "--env-steps", "100"]
    assert main([*options, *critic, "--out", str(tmp_path / "critic")]) == 0


@pytest.mark.parametrize("follower", ["linear-programming", "dqn"])
def test_a_leader_that_needs_reactions_refuses_a_greedy_follower(
    follower: str, rooms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*rooms, "--follower", follower]) == 2
    assert "answers with the best action alone" in capsys.readouterr().err


def test_the_closing_line_tells_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exact return on a table; what the episodes paid elsewhere; never a number that is none."""
    assert main(["four-rooms", "--iterations", "2", "--env-steps", "200", "--no-progress", "--out", str(tmp_path / "run")]) == 0
    assert re.search(r"leader's return -?\d+\.\d+ \(was -?\d+\.\d+\) after 2 iterations", capsys.readouterr().out)
    leader = leaders.ZeroOrder(exact=False, env_steps=20)
    free = leaders.optimize(Draws(False), leader, CallableFollower(lambda observation: 0), 2, progress=False)
    assert free.leader_return is None
    assert re.fullmatch(r"leader's return -?\d+\.\d+ in the last iteration's episodes \(was -?\d+\.\d+\) after ", _returns(free))
