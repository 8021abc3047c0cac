"""Speed and memory, measured beside a yardstick of the same run, and stored with the command that made them.

All of them run on one core unless they say otherwise, so thread pools are held to one thread before NumPy is imported.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
