"""The source distribution, the wheel that is built from it, and that wheel in a virtual environment outside the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from bocmdp_gym.registration import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
PACKAGES = ("bocmdp_gym", "followers", "leaders")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Neither tracked nor part of a release; a build in their place would also read an old egg-info back.
UNTRACKED = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "_build", "_generated")

USE = """
import json, sys
import gymnasium as gym
import bocmdp_gym, followers, leaders
from importlib.resources import files

for env_id in json.loads(sys.argv[1]):
    gym.make(env_id)
print(json.dumps({
    "files": [module.__file__ for module in (bocmdp_gym, followers, leaders)],
    "version": leaders.__version__,
    "rates": json.loads(files("leaders.reproduce").joinpath("rates.json").read_text()) != {},
}))
"""


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees nothing of the tree."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # A new installation has no compiled kernels yet, and what is asked here does not hang on them.
    environment["NUMBA_DISABLE_JIT"] = "1"
    done = subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(kind: str, tree: Path, to: Path) -> Path:
    """One hook of the build backend, as pip calls it, without the network: the backend is the one installed here."""
    to.mkdir()
    _run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})", cwd=tree)
    (built,) = to.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return _build("sdist", Path(shutil.copytree(ROOT, folder / "tree", ignore=UNTRACKED)), folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the source distribution and not from the tree, so that it must hold all that is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return _build("wheel", tree, folder / "dist")


def _tree() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_source_distribution(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CITATION.cff", "CHANGELOG.md", "README.md", "pyproject.toml"} | _tree() <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "docs", "notebooks", "benchmarks", "runs")]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == _tree()
    assert {f"{package}/py.typed" for package in PACKAGES} | {"leaders/reproduce/rates.json"} <= names
    assert [name for name in information if name.endswith("/licenses/LICENSE")]


def test_wheel_says_what_it_needs(wheel: Path, metadata: Message) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(needed) == sorted(PROJECT["dependencies"])


def test_wheel_works_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    bin_ = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", bin_ / "python", "--disable-pip-version-check", "install", "--quiet")
    _run(*pip, "--no-index", "--no-deps", "--no-compile", wheel, cwd=tmp_path)
    # What the library needs is read where the tests have it. A folder added by a .pth file has its own .pth files left
    # alone, the editable installation's among them, and comes last.
    (site_packages,) = (tmp_path / "venv").rglob("site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    used = json.loads(_run(bin_ / "python", "-c", USE, json.dumps([entry.id for entry in ENVIRONMENTS]), cwd=tmp_path))
    assert all(Path(file).is_relative_to(site_packages) for file in used["files"])
    assert used["version"] == PROJECT["version"]
    assert used["rates"]

    for script in PROJECT["scripts"]:
        assert "four-rooms" in _run(bin_ / script, "--help", cwd=tmp_path)


def test_the_oldest_versions_are_those_that_are_tried() -> None:
    """``make oldest`` installs the lower bounds, all but torch's: constraints-oldest.txt says why."""
    lines = [line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if line and not line.startswith("#")]
    tried = {name: version for name, _, version in (line.partition("==") for line in lines)}
    for extra in (PROJECT["dependencies"], PROJECT["optional-dependencies"]["contrib"]):
        for requirement in map(Requirement, extra):
            (bound,) = [clause for clause in requirement.specifier if clause.operator == ">="]
            if requirement.name != "torch":
                assert Version(tried[requirement.name]) == Version(bound.version), requirement
