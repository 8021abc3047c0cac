"""How long it takes until something happens, and how much memory: imports, help, and the demo with compiled kernels and without.

``python -m benchmarks.start`` stores ``results/start.json``. Everything is a process of its own, from its start to its end:
seconds of processor time, which do not depend on what else the machine does, and the peak of its memory. Short ones are the best
of several. The yardstick is importing torch, numba and Gymnasium, and for memory importing torch and numba. Kernels go to a
folder of their own, which is empty for the first demo; the demo after `leaders.warm_up` is the first one in another such folder.
One call of a kernel is told besides, for what numba loads at its first call is part of every run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import store

REPEATS = 3
#: As ``make demo`` has it.
DEMO = "four-rooms --leader hpgd --regularization 0.001 --penalty-cost 1 --iterations 10000 --seed 0 --overwrite --no-progress"
KERNEL = (
    "from bocmdp_gym.kernels.returns import returns_to_go as r; import numpy as np; r(np.ones(2), np.array([2]), np.ones(1), 0.9)"
)
USED = "from leaders import HPGD, optimize; from followers import SoftPolicyIteration; from bocmdp_gym.envs import FourRooms"


#: A small process starts each, for a process's peak of memory counts what it was copied from.
LAUNCH = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
os._exit(os.waitstatus_to_exitcode(status))
"""


def measure(words: list[str], kernels: Path, repeats: int = 1) -> dict[str, float]:
    """Processor seconds and peak memory of a process of Python: the least of some.

    Args:
        words: its command line.
        kernels: where compiled code is kept.
        repeats: how often it runs.
    """
    environment, found = os.environ | {"NUMBA_CACHE_DIR": str(kernels)}, []
    for _ in range(repeats):
        command = [sys.executable, "-u", "-c", LAUNCH, *words]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found.append(tuple(map(float, done.stdout.split())))
    seconds, memory = (min(column) for column in zip(*found, strict=True))
    return {"seconds": round(seconds, 3), "peak_memory_MB": round(memory)}


def main() -> None:
    with TemporaryDirectory() as folder:
        cold, warm = Path(folder) / "cold", Path(folder) / "warm"
        demo = ["-m", "leaders.train", *DEMO.split(), "--out", str(Path(folder) / "demo")]
        rows: dict[str, Any] = {
            "demo, nothing compiled": measure(demo, cold),
            "python -m leaders.warm_up": measure(["-m", "leaders.warm_up", "--no-progress"], warm),
            "demo, the first after it": measure(demo, warm),
            "demo": measure(demo, warm, REPEATS),
        }
        short = {
            "import torch, numba": ["-c", "import torch, numba"],
            "import torch, numba, and a call of one kernel": ["-c", f"import torch, numba; {KERNEL}"],
            "import torch, numba, gymnasium": ["-c", "import torch, numba, gymnasium"],
            "import bocmdp_gym, followers, leaders": ["-c", "import bocmdp_gym, followers, leaders"],
            "the same, and what a run of HPGD uses": ["-c", USED],
            "python -m leaders.train --help": ["-m", "leaders.train", "--help"],
            "python -m leaders.train four-rooms --help": ["-m", "leaders.train", "four-rooms", "--help"],
        }
        measure(short["import torch, numba, and a call of one kernel"], warm)
        rows |= {name: measure(words, warm, REPEATS) for name, words in short.items()}
    seconds, memory = rows["import torch, numba, gymnasium"]["seconds"], rows["import torch, numba"]["peak_memory_MB"]
    ratios = {
        "import": rows["import bocmdp_gym, followers, leaders"]["seconds"] / seconds,
        "import, and what a run uses": rows["the same, and what a run of HPGD uses"]["seconds"] / seconds,
        "demo after warm_up / demo": rows["demo, the first after it"]["seconds"] / rows["demo"]["seconds"],
        "demo, nothing compiled / demo": rows["demo, nothing compiled"]["seconds"] / rows["demo"]["seconds"],
        "memory of the demo": rows["demo"]["peak_memory_MB"] / memory,
    }
    store("start", {"rows": rows, "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}})


if __name__ == "__main__":
    main()
