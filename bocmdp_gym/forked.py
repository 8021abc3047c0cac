"""Torch's threads in forked processes, such as the workers of gymnasium's AsyncVectorEnv.

A forked process inherits torch's thread pool without its threads, and the first parallel operation in it would never
finish. Environments therefore limit torch to one thread where they are constructed, reset or given an x in a process forked
after this module was imported. Programs that fork for other reasons keep their threads.
"""

from __future__ import annotations

import os

import torch

_process = os.getpid()


def limit_threads_after_fork() -> None:
    """Set torch to one thread, once in each forked process; nothing in the process that imported this module."""
    global _process
    here = os.getpid()
    if here != _process:
        _process = here
        torch.set_num_threads(1)
