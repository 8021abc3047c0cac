"""Many tasks in many processes: each runs once, keeps what it found, and outlives workers that die.

A task is a JSON-able mapping under a stable key; a function turns it into a JSON-able result. Each task has a folder of its own,
FOLDER/KEY, which holds what the function leaves there and

result.json  the task and its result, with a checksum, written whole by who ran it: a task that has one is never run again
log.txt      what the function printed
error.txt    the traceback of its last failure, while it has no result

Runs of `leaders.train` over seeds and settings are such tasks (`leaders.sweep`), and so are the cells of a published table.
"""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from leaders.tasks.attempts import Function
    from leaders.tasks.runner import Backend, Outcomes, run_tasks
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = ["Backend", "Function", "Outcomes", "run_tasks"]
