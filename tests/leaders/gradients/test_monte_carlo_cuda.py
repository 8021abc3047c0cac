from __future__ import annotations

import os
import subprocess
import sys

import pytest

import followers
from bocmdp_gym.errors import UnsupportedError
from leaders import HPGD, optimize_many
from tests.problems import random_model, small_rooms


def test_the_kernels_where_numba_simulates_a_device() -> None:
    """In a process of its own: what numba simulates is decided when it is imported."""
    command = [sys.executable, "-m", "tests.leaders.gradients.simulated_cuda"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs agree"


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:99", "numba cannot use device 'cuda:99' here"), ("cpu", "expected 'cuda'")]
)
def test_what_is_no_cuda_device_is_refused(device: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        optimize_many(small_rooms(), HPGD(), followers.SoftPolicyIteration(0.1), 3, device=device)


def test_problems_that_are_not_served_are_refused() -> None:
    model = random_model(moving=("reward", "leader_reward", "transition"))
    with pytest.raises(UnsupportedError, match="not for MonteCarloEstimator here"):
        optimize_many(model, HPGD(), followers.SoftPolicyIteration(0.1), 3, device="cuda")
