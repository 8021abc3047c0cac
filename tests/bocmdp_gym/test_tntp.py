"""Files of road networks: what is written is read, and files that are broken are refused by line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bocmdp_gym import tntp
from bocmdp_gym.errors import DataError, ModelError
from bocmdp_gym.road_network import RoadNetwork, grid


def write(network: RoadNetwork, folder: Path, name: str = "City") -> Path:
    """A network as files, in the layout of the collection: comments, tabs, semicolons and all."""
    n, k = network.n_nodes, network.n_links
    lines = [f"<NUMBER OF ZONES> {n}", f"<NUMBER OF NODES> {n}", "<FIRST THRU NODE> 1", f"<NUMBER OF LINKS> {k}\t"]
    lines += ["<ORIGINAL HEADER>~ init term", "<END OF METADATA>\t", "", "~\tinit_node\tterm_node\tcapacity\tlength\t;"]
    columns = (network.tail + 1, network.head + 1, network.capacity, np.ones(k), network.free_flow_time, network.b, network.power)
    lines += ["\t" + "\t".join(f"{value!r}" for value in map(float, row)) + "\t0\t0\t1\t;" for row in zip(*columns, strict=True)]
    path = folder / f"{name}_net.tntp"
    path.write_text("\n".join(lines).replace(".0\t", "\t") + "\n")
    lines = [f"<NUMBER OF ZONES> {n}", f"<TOTAL OD FLOW> {network.trips.sum()!r}", "<END OF METADATA>"]
    for origin, row in enumerate(network.trips):
        lines += ["", f"Origin \t{origin + 1} ", " ".join(f"{j + 1} : {float(trips)!r};" for j, trips in enumerate(row))]
    (folder / f"{name}_trips.tntp").write_text("\n".join(lines).replace("np.float64(", "").replace(")", "") + "\n")
    places = [f"{i + 1}\t{x!r}\t{y!r}\t;" for i, (x, y) in enumerate(network.position.tolist())]
    (folder / f"{name}_node.tntp").write_text("\n".join(["Node\tX\tY\t;", *places]) + "\n")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    network = grid(3)
    found = tntp.read_network(write(network, tmp_path))
    assert found.name == "City"
    for name in ("tail", "head", "capacity", "free_flow_time", "b", "power", "position", "passable"):
        np.testing.assert_array_equal(getattr(found, name), getattr(network, name))
    np.testing.assert_allclose(found.trips, network.trips, rtol=1e-15)
    (tmp_path / "City_node.tntp").unlink()
    placed = tntp.read_network(tmp_path / "City_net.tntp").position
    assert placed.shape == (9, 2)
    assert np.unique(placed.round(6), axis=0).shape == (9, 2)  # nodes without positions are laid out by their distances


def test_flows_are_read_in_the_order_of_the_links(tmp_path: Path) -> None:
    network = grid(2)
    rows = [f"{i + 1} \t{j + 1} \t{10 * i + j} \t1.0 " for i, j in zip(network.tail, network.head, strict=True)]
    path = tmp_path / "City_flow.tntp"
    path.write_text("\n".join(["From \tTo \tVolume \tCost", *rows[::-1]]))
    np.testing.assert_array_equal(tntp.read_flows(path, network), 10 * network.tail + network.head)
    path.write_text("\n".join(["From \tTo \tVolume \tCost", *rows[1:]]))
    with pytest.raises(DataError, match="has no flow from node 1 to 2"):
        tntp.read_flows(path, network)


def _cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("file", "change", "error", "message"),
    [
        ("net", lambda t: "", DataError, "no line <END OF METADATA>"),
        ("net", lambda t: t.replace("<END OF METADATA>", ""), DataError, r"line 9: '1\\t2"),
        ("net", lambda t: "\n".join(t.splitlines()[:-4]), DataError, "has 20 links and says there are 24; it is cut short"),
        ("net", _cut, DataError, "City_net.tntp"),
        ("net", lambda t: t.replace("<NUMBER OF NODES> 9", "<NUMBER OF NODES> many"), DataError, "<NUMBER OF NODES> is many"),
        ("net", lambda t: t.replace("<NUMBER OF LINKS> 24", ""), DataError, "<NUMBER OF LINKS> is missing"),
        ("net", lambda t: t.replace("\t1800\t", "\tfast\t", 1), DataError, r"line \d+: .*expected 7 numbers"),
        ("net", lambda t: t.replace("\t1800\t", "\t0\t", 1), ModelError, r"City: link \d+ \(\d to \d\) has capacity 0"),
        ("net", lambda t: t.replace("\t1800\t", "\t-5\t", 1), ModelError, "capacity -5; expected a number > 0"),
        ("net", lambda t: t.replace("\t0.15\t", "\tnan\t", 1), ModelError, "has b nan"),
        ("net", lambda t: t.replace("\t1\t2\t", "\t1\t77\t", 1), ModelError, r"link 0 \(1 to 77\) joins nodes that do not exist"),
        ("trips", lambda t: t.replace("Origin \t1 ", ""), DataError, "expected 'Origin n'"),
        ("trips", lambda t: t.replace("Origin \t1 ", "Origin \t10 "), DataError, r"node '10'; expected one of 1\.\.9"),
        ("trips", lambda t: t.replace("2 : ", "2 - ", 1), DataError, "'destination : trips;' entries"),
        ("trips", lambda t: t.replace("2 : 0.0;", "2 : few;", 1), DataError, "expected a number of trips"),
        ("trips", lambda t: t.partition("Origin \t5")[0], DataError, "cut short or damaged"),
        ("trips", _cut, DataError, "City_trips.tntp"),
        ("trips", lambda t: t.replace("<TOTAL OD FLOW>", "<TOTAL OD FLOW> about"), DataError, "TOTAL OD FLOW"),
        ("node", lambda t: "\n".join(t.splitlines()[:-1]), DataError, "no position of node 9"),
        ("node", lambda t: t.replace("Node\tX\tY\t;", "Node\tX\tY\t;\n1\tleft\t;"), DataError, "line 2"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(tmp_path: Path, file: str, change: object, error: type[Exception], message: str) -> None:
    path = write(grid(3), tmp_path)
    broken = path.with_name(f"City_{file}.tntp")
    assert callable(change)
    text = change(broken.read_text())
    assert text != broken.read_text(), "the change found nothing to change"
    broken.write_text(text)
    with pytest.raises(error, match=message):
        tntp.read_network(path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write(grid(3), tmp_path)
    with pytest.raises(DataError, match=r"expected the path of a NAME_net\.tntp"):
        tntp.read_network(tmp_path / "City.net")
    path.with_name("City_trips.tntp").unlink()
    with pytest.raises(DataError, match=r"City_trips\.tntp cannot be read"):
        tntp.read_network(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected a text file"):
        tntp.read_network(path)


def test_data_that_cannot_be_fetched_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tntp.DATA_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)  # not installed
    with pytest.raises(DataError, match=r"pip install 'bocmdp-gym\[roads\]', or fetch .* yourself and put it into .*sioux_falls"):
        tntp.sioux_falls()

    class Offline:
        @staticmethod
        def retrieve(*arguments: object, **keywords: object) -> None:
            raise ConnectionError("no way out")

    monkeypatch.setitem(sys.modules, "pooch", Offline)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"could not be fetched \(no way out\); fetch https://.*BOCMDP_GYM_DATA"):
        tntp.sioux_falls()
    (tmp_path / "sioux_falls").mkdir()
    (tmp_path / "sioux_falls" / "SiouxFalls_net.tntp").write_text("changed")
    with pytest.raises(DataError, match="is not the published file: its SHA-256 is"):
        tntp.sioux_falls()
    with pytest.raises(DataError, match=r"put Anaheim_net\.tntp and Anaheim_trips\.tntp"):
        tntp.anaheim()
    (tmp_path / "anaheim").mkdir()
    write(grid(3), tmp_path / "anaheim", "Anaheim")
    assert tntp.anaheim().n_links == 24
    monkeypatch.delenv(tntp.DATA_VARIABLE)
    assert tntp.data_folder() == Path.home() / ".cache" / "bocmdp_gym"


def test_a_file_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pooch is asked for: one file, at a fixed commit, with its checksum."""
    asked = []

    class Home:
        @staticmethod
        def retrieve(url: str, known_hash: str, fname: str, path: Path) -> None:
            asked.append((url, known_hash))
            path.mkdir(exist_ok=True)
            (path / fname).write_text("not what was published")

    monkeypatch.setenv(tntp.DATA_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", Home)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(DataError, match="not the published file"):
            tntp.sioux_falls_file("flow")
    ((url, checksum),) = asked
    assert url.endswith("/d1639b4ef218c17928ba573e806ddf8ba5e7ae6d/SiouxFalls/SiouxFalls_flow.tntp")
    assert checksum.startswith("sha256:5d0b83a2")
