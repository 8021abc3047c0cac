"""The table from stored runs: grids, aggregation, resumption. Values come from planted results or from tiny runs."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from bocmdp_gym.errors import OptionError
from leaders.reproduce import __main__ as command
from leaders.reproduce import figures, table
from leaders.reproduce.paper import BEST_KNOWN, CELLS, FIGURES, GRID_SEEDS, SEEDS, TABLE_1, Cell
from leaders.reproduce.runs import key, make_leader, run, task
from leaders.reproduce.table import Dynamics

TINY = ["--iterations", "20", "--seeds", "2", "--quick", "--workers", "2", "--no-progress"]


def test_the_papers_numbers_are_complete():
    assert len(CELLS) == 9
    assert all(set(column) == set(CELLS) for column in (*TABLE_1.values(), BEST_KNOWN, FIGURES))
    numbers = [number for pair in FIGURES.values() for number in pair]
    assert sorted(numbers) == list(range(1, 19))
    assert not set(GRID_SEEDS) & set(SEEDS)


def test_keys_tell_tasks_apart():
    plain = {"learning_rate": 0.5}
    tasks = [
        task("hpgd", CELLS[0], 0, 100, 0.44, plain),
        task("hpgd", CELLS[0], 1, 100, 0.44, plain),
        task("hpgd", CELLS[1], 0, 100, 0.44, plain),
        task("hpgd", CELLS[0], 0, 200, 0.44, plain),
        task("hpgd", CELLS[0], 0, 100, 1 / 3, plain),
        task("hpgd", CELLS[0], 0, 100, 0.44, plain, simulator_slip_probability=0.33),
        task("hpgd", CELLS[0], 0, 100, 0.44, plain, bootstrap_truncated=True),
        task("amd", CELLS[0], 0, 100, 0.44, plain),
        task("zero-order", CELLS[0], 0, 100, 0.44, {"learning_rate": 0.5, "smoothing": 2.0}),
    ]
    assert len({key(t) for t in tasks}) == len(tasks)


def test_the_grid_takes_the_best_mean_over_its_seeds():
    def planted(tasks):
        # rate 0.1 is best on average; rate 1 has the best single seed
        values = {1.0: (2.0, -1.5), 0.1: (0.5, 0.5)}
        return [{"value": values.get(t["learning_rate"], (0, 0))[GRID_SEEDS.index(t["seed"])]} for t in tasks]

    best = table.grid(("hpgd", "zero-order"), Dynamics(0.44), 10, planted)
    assert best["hpgd"] == {cell: {"learning_rate": 0.1} for cell in CELLS}
    assert all(rates["learning_rate"] == 0.1 and "smoothing" in rates for rates in best["zero-order"].values())
    assert table.rates_from_json(json.loads(json.dumps(table.rates_to_json(best)))) == best


def test_entries_and_markdown():
    def planted(tasks):
        return [{"value": t["seed"] + t["penalty_cost"]} for t in tasks]

    rates = {"hpgd": {cell: {"learning_rate": 1.0} for cell in CELLS}}
    found = table.entries(("hpgd",), Dynamics(0.44), 10, range(4), rates, planted)
    assert [entry.cell for entry in found] == list(CELLS)
    first = found[0]
    assert first.values == (1.0, 2.0, 3.0, 4.0)
    assert first.mean == 2.5
    assert first.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    text = table.markdown(found, BEST_KNOWN, BEST_KNOWN)
    assert len(text.splitlines()) == 11
    assert "| 0.001 | 1 | 2.500 ± 0.645 | 0.91 ± 0.088 | 1.1772 | 1.1772 |" in text
    alone = table.entries(("hpgd",), Dynamics(0.44), 10, [0], rates, planted)
    assert math.isnan(alone[0].standard_error)


def test_the_simulator_that_differs_is_hpgds_alone():
    mixed = Dynamics(0.44, 0.33)
    assert table.cell_task("hpgd", CELLS[0], 0, 1, mixed, {})["simulator_slip_probability"] == 0.33
    assert table.cell_task("amd", CELLS[0], 0, 1, mixed, {})["simulator_slip_probability"] is None
    assert mixed.label != Dynamics(0.44).label


@pytest.mark.parametrize("algorithm", ["hpgd", "amd", "zero-order", "literal-amd"])
def test_a_run_reports_the_last_tenth(algorithm, tmp_path):
    rates = {"learning_rate": 0.5, "smoothing": 1.0}
    found = run(task(algorithm, Cell(0.003, 3.0), 0, 100, 0.44, rates), tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["iterations"] == [*range(0, 100, 10), 99]
    assert found["value"] == pytest.approx(np.mean(found["curve"][-2:]), abs=1e-15)  # iterations 90 and 99
    assert len(found["x"]) == 105


def test_the_literal_amd_climbs_to_the_same_place_as_the_adjoint_form(tmp_path):
    cell, rates = Cell(0.005, 3.0), {"learning_rate": 1.0}
    found = {a: run(task(a, cell, 0, 60, 0.44, rates), tmp_path / a) for a in ("amd", "literal-amd")}
    assert found["literal-amd"]["last"] == pytest.approx(found["amd"]["last"], abs=0.02)
    assert (tmp_path / "literal-amd" / "checkpoints").is_dir()


def test_table_figures_and_resumption(tmp_path, monkeypatch, capsys):
    cells = CELLS[4:5]
    for module in (command, table):
        monkeypatch.setattr(module, "CELLS", cells)
    monkeypatch.setattr(command.Table1, "rates", lambda self: {
        "hpgd": {cells[0]: {"learning_rate": 0.5}},
        "amd": {cells[0]: {"learning_rate": 1.0}},
        "zero-order": {cells[0]: {"learning_rate": 0.1, "smoothing": 1.0}},
    })  # fmt: skip
    out = tmp_path / "results"
    assert command.main(["table1", *TINY, "--out", str(out)]) == 0
    name = "table1-slip-0.44-quick"
    first = {suffix: (out / f"{name}.{suffix}").read_text() for suffix in ("md", "csv", "json")}
    assert "paper" in capsys.readouterr().out
    rows = list(csv.DictReader(first["csv"].splitlines()))
    assert len(rows) == 6
    assert {row["seed"] for row in rows} == {"0", "1"}
    stored = json.loads(first["json"])
    assert stored["iterations"] == 20
    assert {"command", "machine", "versions", "seeds", "cells"} <= set(stored)
    lost = sorted((out / "tasks").glob("hpgd*/result.json"))[0]
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "tasks").glob("*/result.json")}
    assert command.main(["table1", *TINY, "--out", str(out)]) == 0
    assert (out / f"{name}.md").read_text() == first["md"]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())  # nothing else ran again
    assert command.main(["figures", *TINY, "--out", str(out)]) == 0
    drawn = {path.name for path in (out / "figures-slip-0.44-quick").iterdir()}
    assert drawn == {f"figure{n:02d}.{suffix}" for n in FIGURES[cells[0]] for suffix in ("png", "pdf")}


def test_every_stored_rate_is_one_of_the_papers():
    rates = table.stored_rates(Dynamics(0.44))
    assert set(rates) >= {"hpgd", "amd", "zero-order"}
    for algorithm, cells in rates.items():
        assert set(cells) == set(CELLS)
        candidates = [tuple(sorted(c.items())) for c in table.candidates(algorithm)]
        assert all(tuple(sorted(r.items())) in candidates for r in cells.values())


def test_bad_settings_are_refused(tmp_path, capsys):
    with pytest.raises(OptionError, match="search with --grid"):
        table.stored_rates(Dynamics(0.123))
    out = ["--out", str(tmp_path)]
    assert command.main(["table1", "--slip-probability", "0.123", *out]) == 2
    assert command.main(["table1", "--seeds", "0", *out]) == 2
    assert "seeds is 0" in capsys.readouterr().err


def test_maps_and_curves_show_every_algorithm():
    x = np.zeros(105).tolist()
    results = tuple({"iterations": [0, 10], "curve": [0.0, 1.0 + s], "x": x, "value": 1.0 + s} for s in range(2))
    found = [table.Entry(a, CELLS[0], {"learning_rate": 0.5}, (1.0, 2.0), results) for a in ("hpgd", "amd")]
    drawn = figures.curves(CELLS[0], found, best=1.5)
    assert len(drawn.axes[0].lines) == 3
    drawn = figures.maps(CELLS[0], found, 0.44)
    assert [ax.get_title() for ax in drawn.axes] == [
        "HPGD: 2.000 with 0.198 of 0.2 spent",
        "AMD: 2.000 with 0.198 of 0.2 spent",
    ]


def test_make_leader_reads_every_setting():
    leader = make_leader(task("zero-order", CELLS[0], 0, 1, 0.44, {"learning_rate": 0.05, "smoothing": 2.0}))
    assert leader.update.learning_rate == 0.05
    assert leader.estimator.smoothing == 2.0


@pytest.mark.slow
def test_interrupted_twice_and_resumed(tmp_path):
    arguments = [sys.executable, "-m", "leaders.reproduce", "table1", "--iterations", "1000", "--seeds", "1", "--quick"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*arguments, "--out", str(whole)], check=True, env=environment, capture_output=True)
    for wanted in (3, 12):
        process = subprocess.Popen(
            [*arguments, "--out", str(broken)],
            env=environment,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )
        while len(list(broken.glob("tasks/*/result.json"))) < wanted:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert len(list(broken.glob("tasks/*/result.json"))) < 27
    subprocess.run([*arguments, "--out", str(broken)], check=True, env=environment, capture_output=True)
    name = "table1-slip-0.44-quick.md"
    assert (broken / name).read_text() == (whole / name).read_text()
