from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: What a forked child does, and the number of torch's threads it then has.
USES = {
    "None": 2,  # a program that forks for other reasons keeps its threads
    "gym.make('bocmdp/RandomMDP-v0').reset(seed=0)": 1,
    "env.reset(seed=0)": 1,
    "bocmdp_gym.configurable(env).set_leader([0.1] * 10)": 1,
    "gym.make_vec('bocmdp/RandomMDP-v0', 2, 'vector_entry_point').reset(seed=0)": 1,
}
SCRIPT = f"""
import os, torch, gymnasium as gym, bocmdp_gym
torch.set_num_threads(2)
torch.randn(2000, 2000) @ torch.randn(2000, 2000)
env = gym.make('bocmdp/RandomMDP-v0')
for use in {list(USES)}:
    reading, writing = os.pipe()
    if os.fork() == 0:
        eval(use)
        os.write(writing, str(torch.get_num_threads()).encode())
        os._exit(0)
    os.wait()
    assert torch.get_num_threads() == 2
    print(os.read(reading, 10).decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_of_forked_processes() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [int(number) for number in run.stdout.split()] == list(USES.values())
