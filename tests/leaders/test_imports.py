from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: Packages that take long to import, and that no run needs before it logs or draws.
HEAVY = ("stable_baselines3", "tensorboard", "matplotlib", "panel", "ray")
MODULES = (
    "leaders",
    "leaders.evaluate",
    "leaders.play",
    "leaders.plots",
    "leaders.report.__main__",
    "leaders.reproduce.__main__",
    "leaders.run_folder",
    "leaders.sweep",
    "leaders.tasks",
    "leaders.train",
)


def test_heavy_packages_wait_until_they_are_used() -> None:
    """In a process of its own. What the followers import is theirs."""
    script = (
        "import importlib, json, sys\n"
        "import followers\n"
        "early = set(sys.modules)\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in set(sys.modules) - early]))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_packages_import_what_is_asked_of_them() -> None:
    """Only Gymnasium is needed to register the environments."""
    script = (
        "import sys, bocmdp_gym, followers, leaders\n"
        "own = [name for name in sys.modules if name.split('.')[0] in ('bocmdp_gym', 'followers', 'leaders')]\n"
        "print(*sorted(own), *({'torch', 'numba', 'scipy', 'PIL', 'pandas', 'tqdm', 'tyro', 'jinja2'} & sys.modules.keys()))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own = ["bocmdp_gym", "bocmdp_gym.lazy", "bocmdp_gym.registration", "bocmdp_gym.version", "followers", "leaders"]
    assert found.stdout.split() == own


def test_the_list_of_commands_needs_no_environment() -> None:
    """It tells what each is for all the same."""
    script = (
        "import sys\n"
        "from leaders.train import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    print(*({'torch', 'numba', 'scipy', 'bocmdp_gym.env', 'leaders.loop'} & sys.modules.keys()), 'loaded')\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *text, loaded = found.stdout.splitlines()
    assert loaded.split() == ["loaded"]
    assert any("four-rooms" in line and "A follower walks to a goal" in line for line in text)


def test_a_run_imports_what_it_needs(tmp_path: Path) -> None:
    """HPGD on Four-Rooms needs neither Stable-Baselines3 nor the compilers of torch, which take seconds and 200 MB."""
    script = (
        "import sys\n"
        "from leaders.train import main\n"
        f"main(['four-rooms', '--iterations', '2', '--env-steps', '100', '--no-progress', '--out', {str(tmp_path / 'run')!r}])\n"
        "print(*({'stable_baselines3', 'pandas', 'torch._dynamo', 'sympy', 'matplotlib.pyplot'} & {*sys.modules}), 'loaded')\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1].split() == ["loaded"]


def test_nothing_imports_the_reproduction() -> None:
    """The experiments use the library; the library does not know them."""
    modules = [name for name in MODULES if "reproduce" not in name]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert not [name for name in sys.modules if name.startswith('leaders.reproduce')]\n"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
