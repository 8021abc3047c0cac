"""Tables of ``benchmarks/results`` for the pages: read from the stored JSON, with the command and the machine that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from recipes import recipes
from tried_with import tried_with

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
#: What `leaders.reproduce` left: Markdown tables with a JSON beside each.
REPRODUCTION = RESULTS / "reproduction"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterable[str]:
    """A Markdown table."""
    header = list(header)
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


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


def _walk(r: dict[str, Any]) -> Iterable[str]:
    yield from table(("stay", "file", "functions"), [(i, *stay.split(": ")) for i, stay in enumerate(r["walk"], 1)])
    yield ""
    first = r["first version"]
    yield f"{r['stays']} stays in {r['files']} files; the first version made {first['stays']} in {first['files']}."


def _sampler(r: dict[str, Any]) -> Iterable[str]:
    rows = [(o["what"], f"{o['size']:,}", f"{o['nanoseconds']:,.1f} ns", f"{o['steps_per_second']:,.0f}") for o in r["rows"]]
    yield from table(("what", "states or copies", "per step", "steps per second"), rows)


def _oracle_sampling(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['problem']}, {o['algorithm']}",
            *(f"{o[name]:.0f}" for name in ("bare_step", "alone", "at_once")),
            f"{o['times_faster']:.1f}",
            f"{o['dropped_share']:.0%}",
        )
        for o in r["rows"]
    ]
    yield from table(("problem", "bare step", "one after another", "at once", "times faster", "dropped"), rows)


def _estimators(r: dict[str, Any]) -> Iterable[str]:
    rows = [(name, f"{1e-3 * o['microseconds']:.3g} ms", f"{o['lu']:.1f}") for name, o in r.items() if isinstance(o, dict)]
    yield from table(("one outer iteration", "time", "in LU"), rows)
    yield ""
    yield f"One draw of the geometric estimator takes {r['geometric draw, microseconds']:.2f} µs."


def _monte_carlo_bias(r: dict[str, Any]) -> Iterable[str]:
    def entry(one: dict[str, float]) -> str:
        return f"{one['error_of_mean']:.3g} ± {one['standard_error_of_mean']:.1g}"

    for where, kinds in r.items():
        yield f"**{where}**"
        yield ""
        columns = list(kinds.values())
        rows = [(f"{row[0]['env_steps']:,}", *map(entry, row)) for row in zip(*columns, strict=True)]
        yield from table(("steps", *(f"error of the mean, {kind}" for kind in kinds)), rows)
        yield ""


def _multilevel(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["levels"],
            f"{o['iterations']:.1f}",
            f"{o['plain_iterations']:.0f}",
            f"{o['relative_variance']:.3g}",
            f"{o['plain_relative_variance']:.3g}",
            f"{o['plain_relative_bias']:.2%}",
            f"{o['deviation_in_standard_errors']:.1f}",
        )
        for o in r["rows"]
    ]
    header = ("K", "iterations", "plain", "relative variance", "plain", "bias of both", "deviation of the means, in s.e.")
    yield from table(header, rows)
    yield ""
    yield f"Iterations grow by {r['iterations_per_level']:.2f} per level."


def _convergence(r: dict[str, Any]) -> Iterable[str]:
    rows = [(f"{o['T']:,}", f"{o['squared_norm']:.4f} ± {o['standard_error']:.4f}") for o in r["rate"]["rows"]]
    yield from table(("T", "mean squared gradient norm"), rows)
    yield ""
    yield f"The fitted exponent of T is {r['rate']['slope']:.2f}."
    yield ""
    floor = [
        ("optimum" if o["updates"] < 0 else f"{o['updates']:,}", f"{o['delta']:.2g}", f"{o['squared_norm']:.3g}")
        for o in r["floor"]
    ]
    yield from table(("updates of the follower", "delta", "squared gradient norm it ends with"), floor)


def _tax_design(r: dict[str, Any]) -> Iterable[str]:
    for lam, rows in r["convergence"].items():
        yield f"**λ = {lam}**, errors relative to the finest grid:"
        yield ""
        yield from table(
            ("grid points", "value", "gradient", "leader, played between points", "follower's loss there", "seconds"),
            [
                (
                    o["grid_size"],
                    f"{o['error_of_value']:.2%}",
                    f"{o['error_of_gradient']:.2%}",
                    f"{o['interpolation_leader']:.3%}",
                    f"{o['interpolation_follower']:.4%}",
                    f"{o['seconds']:.2f}",
                )
                for o in rows
            ],
        )
        yield ""
    best = [
        (
            lam,
            f"{o['leader_return_321']:.2f}",
            f"{o['leader_return_321_without_taxes']:.2f}",
            ", ".join(f"{100 * rate:.1f} %" for rate in o["rates"]),
            f"{min(o['from_starts']):.2f} to {max(o['from_starts']):.2f}",
        )
        for lam, o in r["optimum"].items()
    ]
    yield from table(("λ", "leader's return", "without taxes", "income tax, VAT 1 to 3", "from 10 starts, coarse grid"), best)


def _accuracy(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            i,
            f"{c['uniform']:.3f}",
            ", ".join(f"{s['untrained']:.3f}" for s in c["seeds"]),
            ", ".join(f"{s['trained']:.4f}" for s in c["seeds"]),
        )
        for i, c in enumerate(r["contexts"])
    ]
    yield from table(("context", "uniform policy", "untrained, per seed", "trained, per seed"), rows)
    yield ""
    yield f"λ = {r['regularization']}, {r['training_steps']:,} training steps."


def _hpgd(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for name, o in r["runs"].items():
        mean = [sum(s[key] for s in o["seeds"]) / len(o["seeds"]) for key in ("initial", "final", "training_steps", "seconds")]
        gain = f"{o['mean gain']:.3f} ± {o['standard error']:.3f}"
        rows.append((name, f"{mean[0]:.3f}", f"{mean[1]:.3f}", gain, f"{mean[2]:,.0f}", f"{mean[3]:.0f}"))
    yield from table(("follower", "leader's return before", "after", "gain", "training steps", "seconds"), rows)
    yield ""
    yield f"λ = {r['regularization']}, {r['iterations']} outer iterations, means over {len(o['seeds'])} seeds."


def _overhead(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (name, f"{o['bare, CPU seconds']:.3f}", f"{o['follower, CPU seconds']:.3f}", f"{o['median ratio']:.3f}")
        for name, o in r.items()
        if isinstance(o, dict)
    ]
    yield from table(("algorithm", "bare, CPU s", "as a follower, CPU s", "median ratio"), rows)


def _returns(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for where, o in r.items():
        if isinstance(o, dict):
            shares = [", ".join(f"{share:.4f}" for share in o[f"{name}, share of the optimum"]) for name in ("PPO", "DQN")]
            rows.append((where, f"{o['optimum']:.4f}", f"{o['uniform, share of the optimum']:.3f}", *shares))
    yield from table(("", "optimal return", "share reached by the uniform policy", "by PPO, per seed", "by DQN, per seed"), rows)


def _soft_q_learning(r: dict[str, Any]) -> Iterable[str]:
    four_rooms = r["Four-Rooms, 104 states x 4 actions, ns per update"]
    kinds = list(next(iter(four_rooms.values())))
    rows = [(kind, *(f"{times[kind]:.1f}" for times in four_rooms.values())) for kind in kinds]
    yield from table(("ns per update on Four-Rooms", *four_rooms), rows)
    yield ""
    yield from table(("ns per update on random models", ""), ((k, f"{v:.1f}") for k, v in r["random, ns per update"].items()))


def _follower_rates(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for problem, kinds in r["soft value iteration (E.4) and natural policy gradient (E.7)"].items():
        for kind, o in kinds.items():
            shown = [f"{o[k]:.3f}" if o[k] is not None else "too fast to fit" for k in ("Q", "policy", "bound")]
            rows.append((problem, kind, *shown))
    yield from table(("problem", "follower", "rate of Q", "rate of the policy", "proven bound"), rows)
    yield ""
    learnt = [
        (name, f"{o['exponent of T']:.2f}", f"{o['exponent of log T / T']:.2f}")
        for name, o in r["soft Q-learning (E.5)"].items()
        if isinstance(o, dict) and "exponent of T" in o
    ]
    yield from table(("soft Q-learning: squared policy gap", "exponent of T", "exponent of log T / T (proven: 1)"), learnt)


def _peers(r: dict[str, Any]) -> Iterable[str]:
    def seconds(o: dict[str, Any], name: str) -> str:
        return f"{o[f'{name}_seconds']:.3g} s ({o[f'{name}_processor_seconds']:.3g} s)"

    rows = [
        (
            o["problem"],
            f"{o['states']:,}",
            seconds(o, "soft"),
            f"{seconds(o, o['fastest_peer'])}, {o['fastest_peer'].replace('_', ' ')}",
            f"{o['ratio']:.2f}",
            f"{o['processor_ratio']:.2f}",
            f"{o['lu']:,.0f}",
        )
        for o in r["rows"]
    ]
    header = ("problem", "states", "soft solve", "best of DiscreteDP", "ratio", "ratio of processor time", "soft solve in LU")
    yield from table(header, rows)


def _scaling(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['states']:,}",
            f"{o['seconds']:.3g} s",
            f"{o['processor_seconds']:.3g} s",
            f"{o['peak_gigabytes']:.2f} GB",
            f"{o['finite_difference_error']:.1g}",
        )
        for o in r["states"]
    ]
    yield from table(("states", "wall time", "processor time", "peak memory", "error against finite differences"), rows)
    slopes = r["slopes"]
    yield ""
    yield (
        f"From a thousand states on, time grows like the number of states to the power {slopes['seconds']:.2f} (processor time: "
        f"{slopes['processor_seconds']:.2f})."
    )
    yield ""
    contexts = [
        (
            o["family"],
            f"{o['contexts']:,}",
            *(f"{o[f'{k}_seconds']:.3g} s ({o[f'{k}_processor_seconds']:.3g} s)" for k in ("cold", "warm")),
        )
        for o in r["contexts"]
    ]
    yield from table(("100 states", "contexts", "cold start", "warm start"), contexts)


def _linear_solvers(r: dict[str, Any]) -> Iterable[str]:
    names = [key.removesuffix(" seconds") for key in r["rows"][0] if key.endswith(" seconds")]

    def entry(o: dict[str, Any], name: str) -> str:
        time = o[f"{name} seconds"]
        return "" if time is None else f"{1e3 * time:.3g}"

    rows = [(o["problem"], f"{o['states']:,}", *(entry(o, n) for n in names), o["automatic"]) for o in r["rows"]]
    yield from table(("ms of processor time", "states", *names, "automatic choice"), rows)


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


def _stepping(r: dict[str, Any]) -> Iterable[str]:
    rows = [(f"{o['copies']:,}", f"{o['native']:,.0f}", f"{o['sync']:,.0f}") for o in r["steps_per_second"]]
    yield from table(("copies", "native, steps per second", "sync"), rows)


def _tax_leaders(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (lam, name, f"{max(o['mean']):.2f}", f"{o['mean'][-1]:.2f} ± {o['standard_error'][-1]:.2f}")
        for lam, leaders in r["leaders"].items()
        for name, o in leaders.items()
    ]
    yield from table(("λ", "leader", "best mean on the way", f"after {r['budget']:,} steps"), rows)


def _escape_room(r: dict[str, Any]) -> Iterable[str]:
    def entry(one: dict[str, float]) -> str:
        return f"{one['mean']:.2f} ± {one['standard_error']:.2f}"

    rooms = {name: room for name, room in r.items() if name != "budget"}
    names = ("unpaid escapes", "paid escapes", "unpaid leader_return", "paid leader_return")
    rows = [
        (name, "; ".join(str(tuple(run["x"])) for run in room["runs"]), *(entry(room[key]) for key in names))
        for name, room in rooms.items()
    ]
    heads = (
        "x found, per seed: lever, start, door",
        "escapes unpaid",
        "escapes at x",
        "leader's return unpaid",
        "leader's return at x",
    )
    yield from table(("room", *heads), rows)
    yield ""
    budget, seeds = r["budget"], len(next(iter(rooms.values()))["runs"])
    evaluations, steps = budget["evaluations"], 128 * budget["rounds"]
    yield (
        f"{seeds} seeds (± one standard error), {evaluations} evaluations in each; every learner trains {steps:,} steps per "
        "response."
    )


def _cartpole(r: dict[str, Any]) -> Iterable[str]:
    def returns(one: dict[str, Any]) -> str:
        each = one.get("leader_returns", [])
        return f"{one['leader_return']:.1f}" + (f" ({', '.join(f'{value:.1f}' for value in each)})" if len(each) > 1 else "")

    rows = [
        (
            o["seed"],
            ", ".join(f"{pay:.2f}" for pay in o["x"]),
            returns(o["no bonus"]),
            returns(o["bonus found"]),
            f"{o['bonus found']['closeness']:.1f}",
            f"{o['bonus found']['bonus_paid']:.1f}",
        )
        for o in r["runs"]
    ]
    header = ("seed", "x found, at -2, -1, 0, 1, 2", "no bonus", "with the bonus found", "closeness then", "bonus paid")
    yield from table(header, rows)
    yield ""
    budget = r["budget"]
    steps = budget["iterations"] * (budget["follower_steps"] + budget["env_steps"])
    yield (
        f"Mean over seeds: {r['leader_return, no bonus']:.1f} without and {r['leader_return, bonus found']:.1f} with the bonus, "
        f"an improvement of {r['mean improvement']:.1f} ± {r['standard error']:.1f} "
        f"({r['improvement in standard errors']:.1f} standard errors). λ = {r['regularization']}, {budget['iterations']} outer "
        f"iterations, {steps:,} steps in a run, {budget['fresh_steps']:,} training steps per fresh follower, "
        f"{r['CPU seconds'] / 60:.0f} CPU minutes."
    )


def _cartpole_first_order(r: dict[str, Any]) -> Iterable[str]:
    gain, error, theirs = r["mean improvement"], r["standard error"], r["HPGD, mean improvement on the same seeds"]
    rows = [
        ("FirstOrder", f"{gain:.1f} ± {error:.1f}", f"{r['steps']:,.0f}"),
        ("HPGD", f"{theirs:.1f} ± {r['HPGD, standard error']:.1f}", f"{r['HPGD, steps']:,.0f}"),
    ]
    yield from table(("leader", f"improvement, {len(r['seeds'])} seeds", "steps, training included"), rows)


def _leader_reward(r: dict[str, Any]) -> Iterable[str]:
    times = r["microseconds per step"]
    rows = [(name, value, f"{value / times['bare']:.1f}") for name, value in times.items()]
    yield from table(("CartPole's step", "µs", "times the bare step"), rows)


def _tax_learner(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["seed"],
            f"{o['share']:.1%}",
            f"{o['least']:.1%}",
            f"{o['env_steps']:,}",
            f"{o['follower_training_steps']:,}",
            f"{o['seconds']:.0f}",
        )
        for o in r["runs"]
    ]
    yield from table(("seed", "share", "least of the last fifth", "leader's steps", "follower's training steps", "seconds"), rows)


def _continuous_leaders(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["problem"],
            o["leader"],
            f"{o['share']:.1%}" + ("" if o["standard_error"] is None else f" ± {o['standard_error']:.1%}"),
            f"{o['least']:.1%}",
            o["seeds"],
            f"{o['env_steps']:,.0f}",
            f"{o['training_steps']:,.0f}",
            f"{o['cpu_seconds']:.0f}",
        )
        for o in r["rows"]
    ]
    head = ("problem", "leader, follower", "share", "least", "seeds", "leader's steps", "follower's training steps", "CPU s")
    yield from table(head, rows)


def _building_control(r: dict[str, Any]) -> Iterable[str]:
    best = r["optimum"]
    rows = [
        ("x = 0", f"{r['start']:.1f}", "", ""),
        *((f"{name}, published", f"{value:.1f}", "20,000,000", "") for name, value in reversed(r["published"].items())),
        *(
            (
                f"{o['leader']}, {o['seeds']} seeds",
                f"{o['leader_return']:.2f} ± {o['standard_error']:.2f}",
                f"{o['env_steps']:,.0f}",
                f"{o['cpu_seconds']:.0f}",
            )
            for o in r["rows"]
        ),
        (f"best of {best['starts']} exact ascents (the least: {best['least']:.3f})", f"{best['best']:.3f}", "", ""),
    ]
    yield from table(("leader", "F", "environment steps", "CPU s"), rows)
    yield ""
    answers = [
        (
            o["follower"],
            f"{o['training_steps']:,}",
            f"{o['follower_return']:.0f} ± {o['follower_return_error']:.0f}",
            f"{o['leader_return']:.0f} ± {o['leader_return_error']:.0f}",
        )
        for o in r["answers"]
    ]
    yield from table(("follower at x = 0", "training steps", "its return", "leader's return"), answers)


def _adjoint_tables(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['lambda']:g}, {o['beta']:g}",
            o["x"],
            f"{o['env_steps']:,}",
            o["estimator"],
            f"{o['relative_error']:.2f}",
            f"{o['cosine']:.2f}",
            f"{o['bias']:.2f}",
            f"{1e3 * o['cpu_seconds']:.1f}",
        )
        for o in r["rows"]
        if o["env_steps"] in (1_000, 100_000)
    ]
    yield from table(("λ, β", "where", "steps", "estimator", "relative error", "cosine", "error of the mean", "ms"), rows)


def _plus_minus(o: dict[str, Any]) -> str:
    return f"{o['mean']:.3f} ± {o['standard_error']:.3f}"


def _td_table(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["lambda"],
            f"{o['beta']:g}",
            _plus_minus(o),
            f"{o['best_known']:g}",
            f"{o['share']:.0%}",
            f"{o['env_steps_per_update']:,.0f}",
        )
        for o in r["cells"].values()
    ]
    steps = f"{r['settings']['env_steps']:,}"
    header = ("λ", "β", f"td, {steps} steps", "best known", "share", "steps per update, last episode finished")
    yield from table(header, rows)


def _td_single_goal(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for lam, published in r["settings"]["published"].items():
        best = r["cells"].get(f"{lam}/random starts")
        for i, n in enumerate(r["settings"]["steps"]):
            o = r["cells"][f"{lam}/{n}"]
            theirs = [f"{values[i]:.3f}" for values in published.values()]
            beside = () if best is None else (f"{best:.3f}", f"{o['mean'] / best:.0%}")
            rows.append((lam, f"{n:,}", _plus_minus(o), *theirs, *beside))
    columns = [f"{name}, published" for name in next(iter(r["settings"]["published"].values()))]
    header = ("λ", "steps", "td", *columns, "random starts", "td's share of it")
    yield from table(header[: len(rows[0])], rows)


def _td_escapes(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for cell, found in r["cells"].items():
        for kind, contexts in found["statistics"].items():
            for context, o in enumerate(contexts):
                size = o["gradient"]
                bias = f"{o['bias'] / size:.2f} ± {o['chance'] / size:.2f}"
                cosines = (f"{o['cosine']:.2f}", f"{o['clipped cosine']:.2f}")
                rows.append((cell, kind, context, f"{size:.3g}", bias, f"{o['noise'] / size:.3g}", *cosines))
    header = ("cell", "estimates", "context", "exact gradient", "bias", "noise", "cosine of the mean", "of the mean, clipped")
    yield from table(header, rows)
    yield ""
    seeds, cells = len(r["settings"]["seeds"]), r["cells"]
    rows = []
    for variant in next(iter(cells.values()))["runs"]:
        found = [cell["runs"][variant] for cell in cells.values()]
        rows.append((variant, *(f"{sum(o['values']) / seeds:.3f} ({o['escaped']} of {seeds})" for o in found)))
    columns = [f"{name}: {cell['exact ascent']:.3f}, then" for name, cell in cells.items()]
    yield from table(("ascent from there with", *columns), rows)


def _which_estimator(r: dict[str, Any]) -> Iterable[str]:
    problems = r["problems"]

    def cell(problem: dict[str, Any], name: str) -> str:
        if name not in problem["estimators"]:
            return "–"
        one, contexts = problem["estimators"][name], problem["contexts"]
        steps = (one["env_steps"] + one["model_draws"]) / contexts
        used = "model only" if steps == 0 else f"{steps:,.0f} steps"
        error = one["relative_error"]
        said = f"{error:,.0f}" if error >= 10 else f"{error:.2g}"
        seconds = one["seconds"] / contexts
        time = f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
        return f"{said} ({one['cosine']:.2f}; {used}, {time})"

    names = list(dict.fromkeys(name for problem in problems.values() for name in problem["estimators"]))
    rows = [(f"`{name}`", *(cell(problem, name) for problem in problems.values())) for name in names]
    yield from table(("estimator", *(problem["what"] for problem in problems.values())), rows)
    yield ""
    yield (
        "Root mean square error of one estimate at x = 0, relative to the gradient (in brackets: mean cosine of their angle, "
        f"steps and time per context; about {r['steps']:,} steps were asked for); –: cannot work there."
    )
    measured = [
        f"{problem['reference_error']:.1%} ({problem['what']})" for problem in problems.values() if problem["reference_error"] > 0
    ]
    if measured:
        yield f"References from central differences have standard errors of {'; '.join(measured)}."


def _annealing(r: dict[str, Any]) -> Iterable[str]:
    starts = [name for name in r["rows"][0] if isinstance(r["rows"][0][name], dict)]
    header = [f"{leader}, {'constant' if name == 'none' else f'from {name}'}" for leader in ("exact", "HPGD") for name in starts]
    rows = [
        (
            row["lambda"],
            f"{row['penalty_cost']:g}",
            *(f"{row[name]['exact']:.3f}" for name in starts),
            *(f"{row[name]['hpgd']:.3f} ± {row[name]['hpgd_error']:.3f}" for name in starts),
            f"{row['best_known']:.3f}",
        )
        for row in r["rows"]
    ]
    yield from table(("λ", "β", *header, "best known"), rows)
    yield ""
    yield f"Leader's return after {r['iterations']:,} iterations; HPGD: {r['seeds']} seeds."


def _first_order_weights(r: dict[str, Any]) -> Iterable[str]:
    shown = [i for i, w in enumerate(r["weights"]) if i % 2 == 0 and 1e-5 <= w <= 0.11]
    rows = [
        (name, one["regularization"], side, *(f"{one[side][i]:.1e}" for i in shown))
        for name, one in r["models"].items()
        for side in ("two-sided", "one-sided")
    ]
    yield from table(("model", "λ", "", *(f"w = {r['weights'][i]:.0e}" for i in shown)), rows)
    sampled = r["sampled, Four-Rooms"]
    contexts = [name for name in sampled if name.startswith("context")]
    yield ""
    yield f"One estimate from {sampled['steps']:,} steps on Four-Rooms, {sampled['repeats']} of them; errors are relative:"
    yield ""
    rows = [
        (
            name,
            *(
                f"{one['root mean square error']:.2f} / {one['error of the mean']:.2f} / {one['mean cosine']:.2f}"
                for one in (sampled[context][name] for context in contexts)
            ),
            f"{1e3 * sampled[contexts[0]][name]['CPU seconds']:.1f} ms",
        )
        for name in sampled[contexts[0]]
    ]
    columns = (f"{context}: root mean square error / error of the mean / mean cosine" for context in contexts)
    yield from table(("estimator", *columns, "CPU time"), rows)


def _first_order_learner(r: dict[str, Any]) -> Iterable[str]:
    def entries(values: list[float], errors: list[float] | None) -> str:
        noise = [""] * len(values) if errors is None else [f" ± {error:.3f}" for error in errors]
        return ", ".join(f"{value:.3f}{error}" for value, error in zip(values, noise, strict=True))

    rows = [
        (
            one["context"],
            one["seeds"],
            entries(one["central differences"], one["their standard errors"]),
            entries(one["FirstOrder"], one["its standard errors"]),
            f"{one['cosine']:.3f}",
        )
        for one in r["contexts"]
    ]
    yield from table(("context", "seeds", "central differences, in five directions", "FirstOrder", "cosine"), rows)


def _road_limits(r: dict[str, Any]) -> Iterable[str]:
    known = r["deterministic"]
    rows = [
        (
            one["lambda"],
            f"{one['travel time']:,.0f}",
            f"{1e-5 * one['Beckmann']:.5f}",
            f"{one['largest relative difference of a flow']:.2%}",
            ""
            if one["travel time under marginal-cost tolls"] is None
            else f"{one['travel time under marginal-cost tolls']:,.0f}",
        )
        for one in r["rows"]
    ]
    rows.append(("0", f"{known['travel time']:,.0f}", f"{1e-5 * known['Beckmann']:.5f}", "", f"{known['system optimum']:,.0f}"))
    header = ("lambda, minutes", "travel time", "Beckmann, 1e5", "largest error of a flow", "under marginal-cost tolls")
    yield from table(header, rows)


def _road_cost(r: dict[str, Any]) -> Iterable[str]:
    names = ("construction", "cold", "equilibrium", "equilibrium and gradient")
    rows = [
        (one["network"], one["nodes"], one["links"], one["classes"], *(f"{one[name]:.3f} s" for name in names))
        for one in r["rows"]
    ]
    yield from table(("network", "nodes", "links", "destinations", "construction", "first equilibrium", *names[2:]), rows)


def _road_benefit(r: dict[str, Any]) -> Iterable[str]:
    rows = [(name, f"{one['relative distance']:.1e}", one["gradients"]) for name, one in r["from"].items()]
    yield from table(("from", "relative distance to the optimum", "gradients"), rows)
    yield ""
    yield f"At marginal-cost tolls the largest entry of the gradient is {r['largest entry of the gradient there']:.1e}."


def _population_learning(r: dict[str, Any]) -> Iterable[str]:
    rounds = list(dict.fromkeys(one["rounds"] for one in r["rows"]))
    found: dict[tuple[str, Any], list[str]] = {}
    for one in r["rows"]:
        cell = f"{one['exploitability']:.2g} ({one['largest difference of a flow']:.2%})"
        found.setdefault((one["network"], one["steps per class and round"]), []).append(cell)
    rows = [(network, "exact" if steps is None else f"{steps:,}", *cells) for (network, steps), cells in found.items()]
    yield from table(("network", "steps per class and round", *(f"{n} rounds" for n in rounds)), rows)
    yield ""
    yield "Exploitability in minutes, and the largest difference of a flow from the exact equilibrium's, over the largest flow."


def _population_leading(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            name,
            f"{one['travel time']:.3f}",
            "" if one["exploitability"] is None else f"{one['exploitability']:.2g}",
            one["responses"],
            f"{one['seconds']:.0f} s",
        )
        for name, one in r["leaders"].items()
    ]
    header = ("leader", "minutes per driver at the equilibrium", "exploitability of the last response", "responses", "time")
    yield from table(header, [("no tolls", f"{r['without tolls']:.3f}", "", "", ""), *rows])


def _population_ppo(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (one["rounds"], f"{one['steps']:,}", f"{one['exploitability']:.3g}", f"{one['largest difference of a flow']:.1%}")
        for one in r["rows"]
    ]
    yield from table(("rounds", "steps", "exploitability", "largest difference of a flow"), rows)


def _road_search(r: dict[str, Any]) -> Iterable[str]:
    columns = ("without tolls", "hypergradient, best", "CMA-ES", "zero-order")
    rows = [
        (
            name,
            *(f"{one[column]:.3f}" for column in columns),
            f"{min(one['hypergradient, ten starts']):.3f}",
            one["equilibria"],
        )
        for name, one in r.items()
    ]
    yield from table(("minutes per driver", *columns, "hypergradient, worst start", "equilibria"), rows)


def _income_tax(r: dict[str, Any]) -> Iterable[str]:
    for objective, o in r["objectives"].items():
        yield f"**{objective.replace('_', ' ')}**"
        yield ""
        rows = [
            (
                name,
                f"{one['value']:.5f}",
                f"{one['Gini']:.3f}",
                f"{one['productivity']:,.0f}",
                f"{one['welfare']:.4f}",
                f"{one['rebate']:,.0f}",
                ", ".join(f"{100 * rate:.0f}" for rate in one["rates"]),
            )
            for name, one in o["schedules"].items()
        ]
        header = ("rates", "objective", "Gini of consumption", "mean income, USD", "welfare", "rebate, USD", "marginal rates, %")
        yield from table(header, rows)
        yield ""
        how = o["search"]
        found = sum(one > max(how["random starts"]) - 1e-3 for one in how["random starts"])
        yield f"{found} of {len(how['random starts'])} random starts end within 0.001 of the best of them."
        yield ""


def _leader_acts(r: dict[str, Any]) -> Iterable[str]:
    def entries(game: dict[str, Any], name: str) -> tuple[str, ...]:
        found = (game["runs"][name][kind] for kind in ("first steps", "exact"))
        return tuple(f"{o['mean']:.2f} ± {o['standard_error']:.2f}" for o in found)

    rows = []
    for game in r["rows"]:
        rows.append((game["game"], "best known", *(f"{game['best'][kind]:.2f}" for kind in ("first steps", "exact"))))
        rows += [("", name, *entries(game, name)) for name in game["runs"]]
        if game is r["rows"][0]:
            for name, (mean, error) in r["published"].items():
                rows.append(("", f"{name}, published", f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}"), ""))
    yield from table(("game", "leader", "first 150 steps", "exact return"), rows)
    yield ""
    yield f"Discounted returns of the last x after {r['iterations']:,} updates, {r['seeds']} seeds, λ = {r['lambda']}."


def _ppo_directions(r: dict[str, Any]) -> Iterable[str]:
    def row(values: Iterable[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    rows = []
    for o in r["points"]:
        differences = ", ".join(
            f"{value:.2f} ± {error:.2f}" for value, error in zip(o["differences"], o["standard_errors"], strict=True)
        )
        estimates = [one["told"] for one in o["estimates"]]
        mean = [sum(parts) / len(parts) for parts in zip(*estimates, strict=True)]
        lambdas = sorted(one["lambda"] for one in o["estimates"])
        told, bonus = (f"{min(o['cosines'][kind]):.3f}" for kind in ("told", "bonus"))
        rows.append((row(o["x"]), differences, row(mean), f"{lambdas[0]:.3f} to {lambdas[-1]:.3f}", told, bonus))
    header = ("x", "differences", "critic, mean", "λ told by returns", "least cosine", "at PPO's entropy bonus")
    yield from table(header, rows)


TABLES: dict[str, Callable[[dict[str, Any]], Iterable[str]]] = {
    "outer_loop": _outer_loop,
    "walk": _walk,
    "sampler": _sampler,
    "oracle_sampling": _oracle_sampling,
    "estimators": _estimators,
    "which_estimator": _which_estimator,
    "annealing": _annealing,
    "first_order_weights": _first_order_weights,
    "first_order_linear_program": _first_order_learner,
    "first_order_ppo": _first_order_learner,
    "first_order_dqn": _first_order_learner,
    "monte_carlo_bias": _monte_carlo_bias,
    "multilevel": _multilevel,
    "convergence": _convergence,
    "tax_design": _tax_design,
    "neural_followers_accuracy": _accuracy,
    "neural_followers_hpgd": _hpgd,
    "neural_followers_overhead": _overhead,
    "sb3_training": _overhead,
    "neural_followers_returns": _returns,
    "soft_q_learning": _soft_q_learning,
    "follower_rates": _follower_rates,
    "peers": _peers,
    "scaling": _scaling,
    "linear_solvers": _linear_solvers,
    "batches": _batches,
    "checkpoints": _checkpoints,
    "tax_design_leaders": _tax_leaders,
    "tax_design_stepping": _stepping,
    "td_table": _td_table,
    "td_table_1000": _td_table,
    "td_table_annealed": _td_table,
    "td_single_goal": _td_single_goal,
    "td_escapes": _td_escapes,
    "tax_design_learner": _tax_learner,
    "continuous_leaders": _continuous_leaders,
    "building_control": _building_control,
    "adjoint_tables": _adjoint_tables,
    "road_tolls_limits": _road_limits,
    "road_tolls_cost": _road_cost,
    "road_tolls_net_benefit": _road_benefit,
    "road_tolls_search": _road_search,
    "income_tax": _income_tax,
    "population_oracle_learning": _population_learning,
    "population_oracle_leading": _population_leading,
    "population_oracle_ppo": _population_ppo,
    "cartpole": _cartpole,
    "cartpole_first_order": _cartpole_first_order,
    "cartpole_first_attempt": _cartpole,
    "leader_reward": _leader_reward,
    "escape_room": _escape_room,
    "escape_room_first": _escape_room,
    "tried_with": tried_with,
    "recipes": recipes,
    "ppo_directions": _ppo_directions,
    "leader_acts": _leader_acts,
}
#: Results whose benchmark writes its table itself.
WRITTEN = ("follower_comparison", "sample_efficiency", "sample_efficiency_cells", "leader_comparison")


def write_results(out: Path) -> None:
    """Write one Markdown file per stored result into ``out``."""
    for name, lines in TABLES.items():
        record = json.loads((RESULTS / f"{name}.json").read_text())
        machine = f"{record['processor']}, Python {record['python']}"
        footer = f"*`{record['command']}` ({machine}); stored in `benchmarks/results/{name}.json`.*"
        (out / f"{name}.md").write_text("\n".join([*lines(record["results"]), "", footer, ""]))
    for name in WRITTEN:
        record = json.loads((RESULTS / f"{name}.json").read_text())
        body = (RESULTS / f"{name}.md").read_text()
        (out / f"{name}.md").write_text(f"{body}\n*`{record['command']}` ({record['processor']}).*\n")
    for path in REPRODUCTION.glob("*.md"):
        record = json.loads(path.with_suffix(".json").read_text())
        footer = f"*`{record['command']}` ({record['machine']}); stored in `benchmarks/results/reproduction/{path.stem}.json`.*"
        body = path.read_text().replace(" ± ", "\u00a0±\u00a0")  # a number stays on one line
        (out / path.name).write_text(f"{body}\n{footer}\n")
