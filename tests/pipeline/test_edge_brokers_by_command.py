"""`publish --edge-broker`, `infer` and `show` with a plan over several Mosquittos."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.transport import TlsFiles
from contract import topics
from contract.errors import ExitCode
from contract.plan import EdgeBroker
from shardline.edges import with_ports
from tests.conftest import Run
from tests.pipeline.split_site import Site, free_port
from tests.tiny import make_tiny_plan


def reach(site: Site) -> Sequence[object]:
    return ("--broker", site.connect.address, "--cluster", site.cluster)


def test_the_command_publishes_brokers_of_edges_and_infers_over_them(
    site: Site, run: Run, tmp_path: Path
) -> None:
    site.start()
    folder = tmp_path / "tiny"
    a, b = site.brokers["a"].address, site.brokers["b"].address
    edges = ("--edge-broker", f"3={b}", "--edge-broker", f"1={a}")
    code, out, err = run("publish", folder, *reach(site), *edges)
    assert code == 0, err
    assert (
        f"brokers of their own: edge 1 (inputs of stage 1) {a}; edge 3 (results) {b}; "
        "everything else goes by the main one" in out
    )
    site.observe()
    code, _, err = run("infer", "dummy:40", *reach(site), "--username", site.name)
    assert code == 0, err
    carried = {name: sorted(count) for name, count in site.carried().items()}
    assert carried == {"main": [0, 2], "a": [1], "b": [3]}
    code, out, err = run("publish", folder, *reach(site))
    assert code == 0, err
    assert "brokers of their own" not in out


def test_the_command_tries_the_brokers_before_it_publishes(
    site: Site, run: Run, tmp_path: Path, quick: None
) -> None:
    site.start()
    plans = site.listen(topics.plan_topic(site.cluster))
    port = free_port()
    edges = ("--edge-broker", f"1=127.0.0.1:{port}")
    code, _, err = run("publish", tmp_path / "tiny", *reach(site), *edges)
    assert code == ExitCode.BROKER
    assert f"edge 1 has a broker of its own, 127.0.0.1:{port}: cannot reach" in err
    edges = ("--edge-broker", f"1={site.connect.address}")
    code, _, err = run("publish", tmp_path / "tiny", *reach(site), *edges)
    assert code == ExitCode.SETTINGS
    assert "that is --broker" in err
    assert plans.heard == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["pi-8:1883"], "expected EDGE=HOST:PORT"),
        (["=pi-8:1883"], "expected EDGE=HOST:PORT"),
        (["-1=pi-8"], "expected EDGE=HOST:PORT"),
        (["²=pi-8"], "expected EDGE=HOST:PORT"),
        (["4=pi-8:1883"], "expected an edge of 0 (the inputs of stage 0) to 3 (the results)"),
        (["9" * 5000 + "=pi-8"], "expected an edge of 0"),
        (["1=pi-8", "1=pi-9"], "edge 1 has a broker already"),
        (["1="], "expected host or host:port"),
        (["1=pi-8:0"], "expected host or host:port"),
        (["1=pi 8"], "expected host or host:port"),
    ],
)
def test_an_option_that_is_none_is_refused_with_what_was_expected(
    tmp_path: Path, run: Run, texts: list[str], expected: str
) -> None:
    make_tiny_plan(tmp_path, devices=())
    options = [part for text in texts for part in ("--edge-broker", text)]
    code, _, err = run("publish", tmp_path / "tiny", *options)
    assert code == ExitCode.SETTINGS
    assert expected in err.replace("\n", " ")
    assert "Traceback" not in err


def test_show_prints_the_brokers_of_edges(site: Site, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("show", tmp_path / "tiny")
    assert code == 0
    assert "brokers of their own" not in out
    (tmp_path / "tiny" / "plan.json").write_text(site.split(e3="hub:1999", e0="hub").to_json())
    code, out, _ = run("show", tmp_path / "tiny")
    assert "edge 0 (inputs of stage 0) hub; edge 3 (results) hub:1999;" in out


def test_the_port_of_an_edge_s_broker_is_written_out_as_tls_or_its_absence_means_it() -> None:
    """A device that reads the plan does not know by what the planner connected."""
    edges = [
        EdgeBroker(edge=edge, address=address)
        for edge, address in enumerate(("pi-8", "pi-8:1999", "[fd00::8]"))
    ]
    tls = TlsFiles(Path("ca.crt"))
    assert [edge.address for edge in with_ports(edges, tls)] == [
        *("pi-8:8883", "pi-8:1999", "[fd00::8]:8883"),
    ]
    assert with_ports(edges, None)[0].address == "pi-8:1883"
