"""A connection to Ray (the extra ``distributed``): to a cluster by its address, or to one of our own on this machine.

Whoever reaches a Ray cluster can run code on it. One of our own listens on the loopback interface alone, asks for a token, and
has no dashboard; what a cluster somewhere else does is for who runs it to say (docs/many_runs.md).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bocmdp_gym.errors import OptionError, UnsupportedError

#: Environment of Ray itself: nothing reported to anyone, and no warning about a default that does not concern us.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
#: Every worker process is one thread: on small matrices the thread pools of several processes only wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
#: Bytes of shared memory of a cluster of our own: results are small.
_OBJECT_STORE = 100 * 2**20


class RayCluster:
    """Ray, connected until `close`; a connection that was there before is used as it is, and left open.

    Args:
        workers: cores of a cluster of our own; all of this machine's if None.
        address: of a running cluster ("auto": the one this machine belongs to); None: one of our own on this machine.

    Attributes:
        ray: the module.
        size: cores of the cluster.

    Raises:
        UnsupportedError: Ray is not installed.
        OptionError: no cluster answers at that address.
    """

    def __init__(self, workers: int | None = None, address: str | None = None):
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        if address is None and "ray" not in sys.modules:  # Ray reads it when it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # a random one, which Ray keeps in the user's home
        try:
            import ray
        except ImportError as error:
            raise UnsupportedError(
                "Ray is not installed; install the extra that brings it: pip install 'bocmdp-gym[distributed]'. Without it, "
                "tasks run in processes on this machine."
            ) from error
        self.ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if address is None:
                quiet |= {"include_dashboard": False, "dashboard_host": "127.0.0.1", "object_store_memory": _OBJECT_STORE}
                with _on_loopback(ray):
                    ray.init(address="local", num_cpus=workers, **quiet)
            else:
                try:
                    ray.init(address=address, **quiet)
                except (ConnectionError, ValueError) as error:
                    raise OptionError(f"no Ray cluster answers at {address!r}: {error}") from error
        self.size = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def close(self) -> None:
        """Disconnect; a cluster of our own stops."""
        if self._ours:
            self.ray.shutdown()


@contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Have a cluster that is started meanwhile listen on the loopback interface alone.

    Ray binds to all interfaces unless a node's address is that of the loopback, and gives it that address only where it takes
    this machine for one that cannot be part of a cluster, as it does by itself on macOS and Windows.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
