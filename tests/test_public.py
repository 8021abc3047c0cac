"""The public surface: versions, errors, and an API page for every public name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors

ROOT = Path(__file__).parents[1]


def test_one_version() -> None:
    assert bocmdp_gym.__version__ == followers.__version__ == leaders.__version__
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert bocmdp_gym.__version__ == written
    assert f"\nversion: {written}\n" in (ROOT / "CITATION.cff").read_text()


def test_an_uninstalled_copy_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from bocmdp_gym import version

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    assert version._installed() == "0+unknown"


def test_every_error_is_exported_in_one_place() -> None:
    for package in (bocmdp_gym, followers, leaders):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".reproduce" not in module.name:
                importlib.import_module(module.name)
    warnings = [errors.CriticWarning, errors.FrozenLeaderWarning, errors.ReportWarning]
    kinds, found = [errors.BOCMDPError, *warnings], set()
    while kinds:
        kind = kinds.pop()
        if kind.__module__.split(".")[0] in ("bocmdp_gym", "followers", "leaders"):
            found.add(kind.__name__)
        kinds += kind.__subclasses__()
    assert found == set(errors.__all__)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
    try:
        yield importlib.import_module("pages")
    finally:
        sys.path.remove(str(ROOT / "docs" / "_extensions"))


def test_every_public_name_is_on_an_api_page(pages: Any, tmp_path: Path) -> None:
    pages.api_pages(tmp_path, set())
    assert {path.stem for path in tmp_path.glob("*.md")} == set(pages.PUBLIC)
    for name in pages.PUBLIC:
        text, module = (tmp_path / f"{name}.md").read_text(), importlib.import_module(name)
        assert len(set(module.__all__)) == len(module.__all__)
        for one in module.__all__:
            assert re.search(rf"(:: {re.escape(name)}\.{one}\n|`{one} <)", text), f"{name}.{one}"
            value = getattr(module, one)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert value.__doc__, f"{name}.{one} has no docstring"
