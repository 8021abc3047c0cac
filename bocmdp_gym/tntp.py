"""Files of Transportation Networks for Research (TNTP): a reader, and Sioux Falls fetched once from its public home.

A network is ``NAME_net.tntp``, a row per link, with ``NAME_trips.tntp`` beside it, and ``NAME_node.tntp`` with positions where
there is one. The collection (https://github.com/bstabler/TransportationNetworks) is for academic use and asks to be cited as
"Transportation Networks for Research Core Team. Transportation Networks for Research"; none of its files is part of this library.
Toll and length columns of files are not read: their weights are 0 in the networks that are named here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bocmdp_gym.errors import DataError
from bocmdp_gym.road_network import Array, RoadNetwork, link_positions

#: The variable that names the folder of data files; the user's cache if it is not set.
DATA_VARIABLE = "BOCMDP_GYM_DATA"
_HOME = "https://raw.githubusercontent.com/bstabler/TransportationNetworks/d1639b4ef218c17928ba573e806ddf8ba5e7ae6d"
#: SHA-256 of the files at that commit.
_CHECKSUMS = {
    "SiouxFalls_net.tntp": "ace99b24cec69c273ff0cf3d6d074110177f0cc0ae24b0c7a9f4f4cb5e27635c",
    "SiouxFalls_trips.tntp": "56f9566857f3f66730fd5c4232258d7ee3ac2931a476526331afd062f4958de7",
    "SiouxFalls_node.tntp": "91c0b954dcfc6f6f08f48de1ce9d245261f5188a33aef76acf3ce1fff0809969",
    "SiouxFalls_flow.tntp": "5d0b83a22ecc3ce79dabb2b2972162b78c5eda571dcb5b3687429d8397654fee",
}
_LINK_COLUMNS = 7  # as far as they are read: tail, head, capacity, length, free flow time, b, power
_TRIP = re.compile(r"^\s*(\S+)\s*:\s*(\S+)\s*$")


def data_folder() -> Path:
    """Where data files are looked for, and kept."""
    given = os.environ.get(DATA_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "bocmdp_gym"


def sioux_falls() -> RoadNetwork:
    """Sioux Falls: 24 nodes, 76 links, 360,600 trips (LeBlanc, Morlok and Pierskalla 1975). Fetched once.

    Raises:
        DataError: the files are not there and cannot be fetched, or are not the published ones.
    """
    paths = [sioux_falls_file(part) for part in ("net", "trips", "node")]
    return read_network(paths[0], name="sioux-falls")


def sioux_falls_file(part: str) -> Path:
    """One of its files, "net", "trips", "node" or "flow" (the best known user equilibrium), fetched if need be.

    Raises:
        DataError: as `sioux_falls`.
    """
    name = f"SiouxFalls_{part}.tntp"
    folder = data_folder() / "sioux_falls"
    path = folder / name
    if not path.is_file():
        _fetch(name, folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _CHECKSUMS[name]:
        raise DataError(
            f"{path} is not the published file: its SHA-256 is {digest[:12]}..., expected {_CHECKSUMS[name][:12]}...; remove it, "
            "and it is fetched again."
        )
    return path


def _fetch(name: str, folder: Path) -> None:
    """Fetch one file of Sioux Falls.

    Raises:
        DataError: pooch is missing, or there is no way to the file's home.
    """
    url = f"{_HOME}/SiouxFalls/{name}"
    where = f"fetch {url} yourself and put it into {folder}, or name another folder of data by the variable {DATA_VARIABLE}"
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"{folder / name} is not there, and fetching it takes pooch; install it by pip install 'bocmdp-gym[roads]', or "
            f"{where}."
        ) from error
    try:
        pooch.retrieve(url, known_hash=f"sha256:{_CHECKSUMS[name]}", fname=name, path=folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{name} could not be fetched ({error}); {where}.") from error


def anaheim() -> RoadNetwork:
    """Anaheim: 416 nodes, 914 links; read from the data folder, never fetched, as no checksum of its files is known here.

    Raises:
        DataError: the files are not there, or cannot be read.
    """
    path = data_folder() / "anaheim" / "Anaheim_net.tntp"
    if not path.is_file():
        raise DataError(
            f"{path} is not there; put Anaheim_net.tntp and Anaheim_trips.tntp of {_HOME}/Anaheim into that folder, or name "
            f"another folder of data by the variable {DATA_VARIABLE}."
        )
    return read_network(path, name="anaheim")


def read_network(path: str | Path, *, name: str | None = None) -> RoadNetwork:
    """A network from ``NAME_net.tntp``, with ``NAME_trips.tntp`` and, for positions, ``NAME_node.tntp`` beside it.

    Raises:
        DataError: a file is missing or cannot be read; it names the file and the line.
        ModelError: numbers that make no network (`RoadNetwork.check`).
    """
    path = Path(path)
    if not path.name.endswith("_net.tntp"):
        raise DataError(f"network file is {str(path)!r}; expected the path of a NAME_net.tntp, with NAME_trips.tntp beside it.")
    stem = path.name.removesuffix("_net.tntp")
    facts, rows = _read(path)
    n_nodes, n_links = (_fact(path, facts, key) for key in ("NUMBER OF NODES", "NUMBER OF LINKS"))
    links = [_numbers(path, line, text, _LINK_COLUMNS) for line, text in rows]
    if len(links) != n_links:
        raise DataError(f"{path} has {len(links)} links and says there are {n_links}; it is cut short or damaged. Get it again.")
    columns = np.array(links).T
    tail, head = (columns[i].astype(np.int64) - 1 for i in range(2))
    first = _fact(path, facts, "FIRST THRU NODE", 1)
    trips = _read_trips(path.with_name(f"{stem}_trips.tntp"), n_nodes)
    nodes = path.with_name(f"{stem}_node.tntp")
    position = _read_positions(nodes, n_nodes) if nodes.is_file() else link_positions(n_nodes, tail, head, columns[4])
    return RoadNetwork(
        name=stem if name is None else name,
        tail=tail,
        head=head,
        capacity=columns[2],
        free_flow_time=columns[4],
        b=columns[5],
        power=columns[6],
        trips=trips,
        passable=np.arange(1, n_nodes + 1) >= first,
        position=position,
    ).check()


def read_flows(path: str | Path, network: RoadNetwork) -> Array:
    """The flows ``(K,)`` of a ``NAME_flow.tntp``, in the network's order.

    Raises:
        DataError: the file is missing, cannot be read, or is another network's.
    """
    path = Path(path)
    rows = {}
    for line, text in _lines(path):
        if text.lower().startswith("from"):
            continue
        tail, head, flow = _numbers(path, line, text, 3)[:3]
        rows[int(tail) - 1, int(head) - 1] = flow
    try:
        return np.array([rows[pair] for pair in zip(network.tail.tolist(), network.head.tolist(), strict=True)])
    except KeyError as error:
        tail, head = error.args[0]
        raise DataError(
            f"{path} has no flow from node {tail + 1} to {head + 1}; expected all links of {network.name}."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers; comments after ``~`` left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected a text file of Transportation Networks for Research."
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        kept = line.partition("~")[0].strip()
        if kept:
            yield number, kept


def _read(path: Path) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """The facts above ``<END OF METADATA>``, and the lines after it.

    Raises:
        DataError: there is no such line.
    """
    facts: dict[str, str] = {}
    lines = _lines(path)
    for number, text in lines:
        found = re.match(r"^<([^>]*)>(.*)$", text)
        if found is None:
            raise DataError(
                f"{path}, line {number}: {text[:40]!r}; expected '<NAME> value', or <END OF METADATA> before the data."
            )
        if found[1].strip().upper() == "END OF METADATA":
            return facts, list(lines)
        facts[found[1].strip().upper()] = found[2].strip()
    raise DataError(f"{path} has no line <END OF METADATA>; it is cut short, or no file of this kind.")


def _fact(path: Path, facts: dict[str, str], key: str, default: int | None = None) -> int:
    text = facts.get(key)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit() or int(text) < 1:
        raise DataError(f"{path}: <{key}> is {text or 'missing'}; expected a positive integer.")
    return int(text)


def _numbers(path: Path, line: int, text: str, least: int) -> list[float]:
    """The numbers of one row."""
    words = text.rstrip(";").split()
    try:
        numbers = [float(word) for word in words[:least]]
    except ValueError:
        numbers = []
    if len(numbers) < least:
        raise DataError(f"{path}, line {line}: {text[:60]!r}; expected {least} numbers or more.")
    return numbers


def _read_trips(path: Path, n_nodes: int) -> Array:
    facts, rows = _read(path)
    trips, origin = np.zeros((n_nodes, n_nodes)), None
    for line, text in rows:
        if text.lower().startswith("origin"):
            origin = _node(path, line, text.split()[-1], n_nodes)
            continue
        for entry in filter(None, map(str.strip, text.split(";"))):
            found = _TRIP.match(entry)
            if found is None or origin is None:
                raise DataError(f"{path}, line {line}: {entry[:40]!r}; expected 'Origin n', then 'destination : trips;' entries.")
            try:
                flow = float(found[2])
            except ValueError as error:
                raise DataError(f"{path}, line {line}: {entry[:40]!r}; expected a number of trips.") from error
            trips[origin, _node(path, line, found[1], n_nodes)] += flow
    total = facts.get("TOTAL OD FLOW")
    if total is not None:
        try:
            said = float(total)
        except ValueError as error:
            raise DataError(f"{path}: <TOTAL OD FLOW> is {total}; expected a number.") from error
        if abs(said - trips.sum()) > 1e-3 * max(said, 1.0):
            raise DataError(
                f"{path} has {trips.sum():g} trips and says there are {said:g}; it is cut short or damaged. Get it again."
            )
    return trips


def _node(path: Path, line: int, word: str, n_nodes: int) -> int:
    if not word.isdigit() or not 1 <= int(word) <= n_nodes:
        raise DataError(f"{path}, line {line}: node {word!r}; expected one of 1..{n_nodes}.")
    return int(word) - 1


def _read_positions(path: Path, n_nodes: int) -> Array:
    position = np.full((n_nodes, 2), np.nan)
    for line, text in _lines(path):
        if text.lower().startswith("node"):
            continue
        node, *place = _numbers(path, line, text, 3)
        position[_node(path, line, f"{node:g}", n_nodes)] = place
    if not np.isfinite(position).all():
        missing = int(np.flatnonzero(~np.isfinite(position).all(-1))[0])
        raise DataError(f"{path} has no position of node {missing + 1}; expected all {n_nodes}. Get it again, or leave it out.")
    return position
