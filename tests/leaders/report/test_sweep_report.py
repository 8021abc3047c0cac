from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaders.report.__main__ import main as report
from leaders.report.sweep_report import read_settings
from leaders.sweep import Sweep, sweep
from tests.leaders.report.test_run_report import read_page

SETTINGS: dict[str, Any] = {"regularization": 0.5, "iterations": 6, "evaluate_every": 3, "n_states": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings, two seeds, and one that fails."""
    out = tmp_path_factory.mktemp("report") / "sweep"
    cases = [{"learning_rate": 0.1}, {"learning_rate": 0.2}]
    plan = Sweep(environments=["random-mdp"], leaders=["exact"], seeds=[0, 1], settings=SETTINGS, cases=cases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leaders.training.save", _fail_once())
        outcomes = sweep(plan, out, backend="serial", retries=0, progress=False)
    assert len(outcomes.failures) == 1
    return out


def _fail_once() -> Any:
    calls: list[Any] = []

    def save(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise RuntimeError("full")

    return save


def test_a_sweep_leaves_a_page_with_links_to_its_runs(folder: Path) -> None:
    page = read_page(folder / "report.html")
    assert "2 settings, 4 runs, 1 of them failed" in page.text
    links = re.findall(r'<a href="([^"]*)"', (folder / "report.html").read_text())
    assert len(links) == 4
    assert all((folder / link).exists() for link in links)
    assert [link.rpartition("/")[2] for link in links] == ["report.html"] * 3 + ["error.txt"]
    assert [source[:14] for source in page.sources] == ["data:image/png"]


def test_its_numbers_are_those_of_the_runs(folder: Path) -> None:
    names, settings = read_settings(folder)
    assert names == ["environment", "leader", "learning_rate"]
    assert [setting.values[-1] for setting in settings] == ["0.1", "0.2"]
    assert [setting.failed for setting in settings] == [0, 1]
    curve = settings[0].curve
    assert curve is not None
    logs = [list(csv.DictReader((folder / run["folder"] / "progress.csv").read_text().splitlines())) for run in settings[0].runs]
    values = np.array([[float(row["leader_return"]) for row in log] for log in logs])
    np.testing.assert_array_equal(curve.iterations, [0, 3, 5])
    np.testing.assert_allclose(curve.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(curve.error, np.abs(values[0] - values[1]) / 2, rtol=1e-9)
    mean, error = settings[0].found("leader_return")
    text = read_page(folder / "report.html").text
    assert mean is not None
    assert error is not None
    assert f"{mean:#.4g} ± {error:.2g}" in text


def test_it_is_written_again_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert report([str(folder)]) == 0
    assert (folder / "report.html").read_text() == written
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_a_damaged_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "environment,seed\nfour-rooms,0\n", "environment\na,b\n"):
        (tmp_path / "runs.csv").write_text(text)
        assert report([str(tmp_path)]) == 2
        assert "start the sweep again" in capsys.readouterr().err
