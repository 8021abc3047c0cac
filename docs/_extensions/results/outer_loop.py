"""What an outer iteration costs, what it passes through, and many runs at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("outer_loop")
def _outer_loop(r: dict[str, Any]) -> Iterable[str]:
    published = r["published code, LU"]
    rows = [
        (name, f"{1e-3 * one['microseconds']:.3g} ms", f"{one['lu']:.1f}", f"{published['HPGD']:,}" if "HPGD" in name else "")
        for name, one in r.items()
        if isinstance(one, dict) and "lu" in one
    ]
    yield from table(("one outer iteration", "time", "in LU", "published code, in LU"), rows)
    full = r["HPGD, 10,000 iterations"]
    yield ""
    cost = f"{full['seconds']:.1f} s and at most {full['peak_memory_MB']:.0f} MB"
    yield f"10,000 iterations of HPGD with 10,000 steps each take {cost}."


@stored("estimators")
def _estimators(r: dict[str, Any]) -> Iterable[str]:
    rows = [(name, f"{1e-3 * o['microseconds']:.3g} ms", f"{o['lu']:.1f}") for name, o in r.items() if isinstance(o, dict)]
    yield from table(("one outer iteration", "time", "in LU"), rows)
    yield ""
    yield f"One draw of the geometric estimator takes {r['geometric draw, microseconds']:.2f} µs."


@stored("batches")
def _batches(r: dict[str, Any]) -> Iterable[str]:
    runs = {name: one for name, one in r.items() if isinstance(one, dict)}
    rows = [
        (size, *(f"{one['ratio'][size]:.2f} ({one['processor_time_ratio'][size]:.2f})" for one in runs.values()))
        for size in next(iter(runs.values()))["ratio"]
    ]
    yield from table(("seeds at once", *runs), rows)
    yield ""
    loads = " and ".join(f"{r[f'load average at the {when}']:.0f}" for when in ("start", "end"))
    yield f"On {r['threads']} threads; load average of the machine {loads}."


@stored("device")
def _device(r: dict[str, Any]) -> Iterable[str]:
    sides = {f"{r['threads']} cores": r["cores"], r["device"]: r["cuda"]}
    cells = [(lam, cost) for lam in (0.001, 0.003, 0.005) for cost in (1, 3, 5)]

    def entry(one: dict[str, Any], place: int) -> str:
        return f"{one['leader_return'][place // 3][place % 3]:.2f} ± {one['standard_error'][place // 3][place % 3]:.2f}"

    rows = [(lam, cost, *(entry(one, i) for one in sides.values())) for i, (lam, cost) in enumerate(cells)]
    yield from table(("λ", "penalty cost", *sides), rows)
    yield ""
    times = " and ".join(f"{one['seconds']:.0f} s on the {name}" for name, one in sides.items())
    yield f"{r['iterations']:,} iterations each, {r['cores']['env_steps'] / 1e9:.1f} billion steps together, take {times}."


@stored("checkpoints")
def _checkpoints(r: dict[str, Any]) -> Iterable[str]:
    def entry(length: str, name: str, factor: float, digits: str) -> str:
        now, before = (factor * r[when][length][name] for when in ("now", "before"))
        return f"{now:{digits}} ({before:{digits}})"

    columns = [
        ("share_of_saving", 100.0, ".0f"),
        ("written_MB", 1.0, ",.1f"),
        ("memory_bytes_per_iteration", 1.0, ".0f"),
        ("processor_seconds", 1.0, ".1f"),
    ]
    header = ("iterations", "% of processor time", "MB written", "bytes of memory per iteration", "processor seconds")
    yield from table(header, [(f"{int(length):,}", *(entry(length, *column) for column in columns)) for length in r["now"]])


@stored("walk")
def _walk(r: dict[str, Any]) -> Iterable[str]:
    yield from table(("stay", "file", "functions"), [(i, *stay.split(": ")) for i, stay in enumerate(r["walk"], 1)])
    yield ""
    first = r["first version"]
    yield f"{r['stays']} stays in {r['files']} files; the first version made {first['stays']} in {first['files']}."
