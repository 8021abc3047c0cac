"""Escapes: when a run leaves, and the estimator's bias there."""

import numpy as np
import torch

from leaders.reproduce.escapes import anatomy, bias_and_noise, escape_iteration
from leaders.reproduce.paper import Cell
from leaders.reproduce.runs import task

CELL, RATE = Cell(0.005, 1.0), {"learning_rate": 0.5}
X = torch.tensor(np.random.default_rng(0).normal(0, 0.01, 105))


def test_the_escape_is_the_first_crossing_of_a_run_that_ends_above():
    assert escape_iteration([0, 10, 20, 30, 40], [0.0, 2.0, 0.5, 1.5, 2.0], threshold=1.0) == 10
    assert escape_iteration([0, 10], [2.0, 2.0], threshold=1.0) == 0
    assert escape_iteration([0, 10, 20], [0.0, 2.0, 0.9], threshold=1.0) is None


def test_the_exact_gradient_has_neither_bias_nor_noise():
    found = bias_and_noise(task("amd", CELL, 0, 1, 0.44, RATE) | {"estimates": 3}, X)
    assert found["gradient_norm"] > 0.01
    assert max(found[name] for name in ("bias", "bias_of_chance", "noise")) < 1e-8
    assert found["cosine_of_mean"] > 1 - 1e-12


def test_bias_is_told_from_noise():
    # 60 estimates of 10,000 steps. The Monte-Carlo estimator is biased at that budget; a simulator that moves another way turns
    # the mean further away. Chance alone would reach neither: 4 standard errors of the mean, 0.08 of cosine.
    cell, extra = Cell(0.001, 1.0), {"estimates": 60}
    agreeing = bias_and_noise(task("hpgd", cell, 0, 1, 0.44, RATE) | extra, X)
    differing = bias_and_noise(task("hpgd", cell, 0, 1, 0.44, RATE, simulator_slip_probability=0.1) | extra, X)
    assert agreeing["bias"] > 4 * agreeing["bias_of_chance"]
    assert agreeing["noise"] / 60**0.5 < 4 * agreeing["bias_of_chance"]
    assert agreeing["cosine_of_mean"] > 0.9
    assert differing["cosine_of_mean"] < agreeing["cosine_of_mean"] - 0.08


def test_anatomy_of_a_run(tmp_path):
    extra = {"estimates": 4, "offsets": [-20, 0, 10**6]}
    found = anatomy(task("hpgd", CELL, 0, 100, 0.44, RATE) | extra | {"threshold": 0.45}, tmp_path)
    assert [at["iteration"] for at in found["points"]] == [found["escape"] - 20, found["escape"], 99]
    assert found["points"][1]["leader_return"] > 0.45 >= found["points"][0]["leader_return"]
    assert anatomy(task("hpgd", CELL, 0, 20, 0.44, RATE) | extra | {"threshold": 99.0}, tmp_path) == {
        "escape": None,
        "points": [],
    }
