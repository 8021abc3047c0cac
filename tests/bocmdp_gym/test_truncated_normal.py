"""The truncated normal distribution against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from bocmdp_gym.truncated_normal import cell_probabilities, truncated_normal_draw, truncated_normal_log_density
from tests.problems import F64

STD, LOW, HIGH = 0.5, -1.0, 2.0


def test_score_of_the_truncated_normal_near_a_bound() -> None:
    """At mean 97, x = 98, std 5 on [-100, 100] the score is 0.132 (raw bounds in place of standardised ones give 0.04)."""
    mean = torch.tensor(97.0, dtype=F64, requires_grad=True)
    log_density = truncated_normal_log_density(torch.tensor(98.0, dtype=F64), mean, 5.0, -100.0, 100.0)
    assert float(log_density.detach()) == pytest.approx(truncnorm.logpdf(98.0, -39.4, 0.6, loc=97.0, scale=5.0), abs=1e-12)
    (score,) = torch.autograd.grad(log_density, mean)
    assert float(score) == pytest.approx(0.132, abs=5e-4)


@pytest.mark.parametrize("mean", [-1.0, 0.3, 1.9])
def test_draws_and_cells_are_scipys(mean: float) -> None:
    law = truncnorm((LOW - mean) / STD, (HIGH - mean) / STD, loc=mean, scale=STD)
    uniform, edges, centre = np.linspace(0.01, 0.99, 9), np.linspace(LOW, HIGH, 8), torch.tensor(mean, dtype=F64)
    drawn = truncated_normal_draw(torch.from_numpy(uniform), centre, STD, LOW, HIGH)
    np.testing.assert_allclose(drawn.numpy(), law.ppf(uniform), atol=1e-9)
    cells = cell_probabilities(torch.from_numpy(edges), centre, STD)
    np.testing.assert_allclose(cells.numpy(), np.diff(law.cdf(edges)), atol=1e-12)
