"""The version of the distribution, the same for its three packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("bocmdp-gym")
    except PackageNotFoundError:  # a copy of the source that is imported without being installed
        return "0+unknown"


__version__ = _installed()
