"""What saving a run costs: bytes written and share of processor time, for a leader that does next to nothing itself.

Run it with ``python -m benchmarks.checkpoints``; results go to ``benchmarks/results/checkpoints.json``. The numbers of version 1,
whose every checkpoint had the whole history in it, were measured with the same script and are kept in ``BEFORE``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import followers
import leaders
from bocmdp_gym import TabularBOCMDP
from leaders.checkpoints import Checkpoints
from leaders.gradients import Estimate, Estimator
from leaders.run import LeaderRun
from leaders.updates import Update

LENGTHS = (30_000, 100_000, 300_000)
EVERY = 500
#: Every checkpoint with the whole history in it: the commit before.
BEFORE: dict[str, dict[str, float]] = {
    "30000": {
        "processor_seconds": 1.443,
        "share_of_saving": 0.7127,
        "written_MB": 51.36,
        "memory_bytes_per_iteration": 411.2,
    },
    "100000": {
        "processor_seconds": 13.01,
        "share_of_saving": 0.8883,
        "written_MB": 563.2,
        "memory_bytes_per_iteration": 142.1,
    },
    "300000": {
        "processor_seconds": 112.2,
        "share_of_saving": 0.9553,
        "written_MB": 5050,
        "memory_bytes_per_iteration": 60.24,
    },
}


class Constant(Estimator):
    """The same gradient every time."""

    def estimate(self, oracle: Any, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        return Estimate(gradient=torch.full_like(x, 1e-9), leader_return=0.5)


def written_bytes() -> int:
    """Bytes this process has handed to the system to write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def resident_bytes() -> int:
    """Memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(iterations: int) -> dict[str, float]:
    """One run of ``iterations``: where its time went, what it wrote and what it kept in memory."""
    x = torch.zeros(3, dtype=torch.float64)
    model = TabularBOCMDP(
        reward=lambda x: x.sum() * torch.ones(1, 2, 2, dtype=x.dtype),
        leader_reward=torch.zeros(1, 2, 2, dtype=x.dtype),
        transition=torch.full((1, 2, 2, 2), 0.5, dtype=x.dtype),
        initial=torch.tensor([[1.0, 0.0]], dtype=x.dtype),
        leader_dim=3,
        discount=0.9,
    )
    saving = 0.0

    def timed(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal saving
            began = time.process_time()
            answer = method(*arguments)
            saving += time.process_time() - began
            return answer

        return call

    def run(length: int, folder: str) -> leaders.Result:
        leader = leaders.Leader(Constant(0.5), Update(0.1))
        checkpoints = Checkpoints(folder, EVERY)
        leaders.optimize(
            model,
            leader,
            followers.SoftPolicyIteration(0.5),
            length,
            checkpoints=checkpoints,
            evaluate_every=10**9,
            progress=False,
        )

    with tempfile.TemporaryDirectory() as folder:
        run(1000, folder + "/warm-up")
        Checkpoints.save, LeaderRun.state = timed(Checkpoints.save), timed(LeaderRun.state)  # type: ignore[method-assign]
        before, memory, began = written_bytes(), resident_bytes(), time.process_time()
        result = run(iterations, folder + "/run")
        seconds, kept = time.process_time() - began, resident_bytes() - memory
        assert len(result.history) == iterations
    return {
        "processor_seconds": seconds,
        "share_of_saving": saving / seconds,
        "written_MB": (written_bytes() - before) / 1e6,
        "memory_bytes_per_iteration": kept / iterations,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    from benchmarks.common import store

    results: dict[str, Any] = {"before": BEFORE, "now": {}}
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.checkpoints", str(length)]  # a process of its own, for its memory
        results["now"][f"{length}"] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    store("checkpoints", results)


if __name__ == "__main__":
    main()
