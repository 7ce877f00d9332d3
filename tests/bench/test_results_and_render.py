"""Results as documents, and the README that is made of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as everything
from bench.machine import Stillness, machine, processor, versions
from bench.payload_picture import draw, lines
from bench.render import README, caption, columns_of, render, render_files, section
from bench.results import RESULTS, Recorder, load, names, numbers, parser, public_arguments
from bench.tables import figure, ratio, text

ROOT = Path(__file__).parent.parent.parent
COLUMNS = (text("model", "model"), ratio("ratio", "ratio"), figure("ms", "ms"))
ROW = {"model": "tiny", "ratio": {"median": 0.9, "min": 0.8, "max": 1.0}, "ms": 2.0}
XEON = "model name\t: Intel(R) Xeon(R) CPU\nflags\t\t: fpu hypervisor avx\n"


def record(path: Path, rows: int = 1) -> Recorder:
    recorder = Recorder("hop", COLUMNS, path)
    for _ in range(rows):
        recorder.add(ROW)
    return recorder


def test_a_document_names_machine_versions_and_command(tmp_path: Path) -> None:
    recorder = record(tmp_path / "deep" / "hop.json", rows=2)
    recorder.note("No compiler here.")
    recorder.note("No compiler here.")
    recorder.finish()
    document = load(tmp_path / "deep" / "hop.json")
    assert document.rows == [ROW, ROW]
    assert document.notes == ["No compiler here."]
    assert document.command.startswith("python -m bench.hop")
    assert document.machine == machine()
    assert {"shardline", "python", "onnxruntime", "mosquitto"} <= set(document.versions)
    assert set(document.stillness) == {"others", "stolen", "quiet"}


def test_a_run_that_is_stopped_keeps_the_rows_it_has(tmp_path: Path) -> None:
    record(tmp_path / "hop.json")
    assert load(tmp_path / "hop.json").rows == [ROW]


def test_what_is_no_document_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "hop.json"
    for text_ in ("[]", "{", '{"benchmark": "hop"}'):
        file.write_text(text_)
        with pytest.raises(ValueError, match=r"hop\.json: not the results"):
            load(file)
    record(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load(file)


def test_where_things_lie_is_not_published() -> None:
    arguments = ["--json", "/home/me/x.json", "--rounds", "5", "--plans=/home/me", "--full"]
    assert public_arguments(arguments) == ["--rounds", "5", "--full"]


def test_options_are_only_those_that_a_benchmark_has() -> None:
    assert vars(parser("x").parse_args([])) == {"json": None}
    assert vars(parser("x", 3, 1.5).parse_args(["--rounds", "4"])) == {
        "json": None,
        "rounds": 4,
        "seconds": 1.5,
    }
    assert names("a,b,") == ["a", "b"]
    assert numbers("1,8") == [1, 8]


def test_a_machine_is_named_by_its_board_or_its_processor() -> None:
    assert processor("Raspberry Pi 5 Model B\0".strip("\0"), "") == "Raspberry Pi 5 Model B"
    assert processor("", XEON) == "Intel(R) Xeon(R) CPU, virtual machine"
    assert processor("", "") == machine()["architecture"]
    assert versions()["python"].startswith("3.")


def test_a_machine_is_quiet_when_nobody_else_uses_it() -> None:
    before = Stillness(total_s=100.0, busy_s=10.0, own_s=5.0, stolen_s=1.0)
    ours = Stillness(total_s=200.0, busy_s=91.0, own_s=85.0, stolen_s=1.0)
    assert ours.since(before) == {"others": 0.01, "stolen": 0.0, "quiet": True}
    theirs = Stillness(total_s=200.0, busy_s=91.0, own_s=45.0, stolen_s=1.0)
    assert theirs.since(before) == {"others": 0.41, "stolen": 0.0, "quiet": False}
    stolen = Stillness(total_s=180.0, busy_s=85.0, own_s=80.0, stolen_s=21.0)
    assert stolen.since(before) == {"others": 0.0, "stolen": 0.2, "quiet": False}
    now = Stillness.now()
    assert Stillness.now().since(now)["others"] <= 1.0


PAGE = "a\n<!-- bench:hop -->\nold\n<!-- bench:end -->\nb\n<!-- bench:rpc -->\n<!-- bench:end -->\n"


def test_a_section_goes_to_its_place_and_nothing_else_changes() -> None:
    once = render(PAGE, {"hop": "new\n"})
    assert once == PAGE.replace("old\n", "new\n")
    assert render(once, {"hop": "new\n"}) == once
    assert render(PAGE, {}) == PAGE


def test_results_without_a_place_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no place for payload: .*bench:payload"):
        render(PAGE, {"payload": "x"})


def test_a_caption_says_when_the_machine_was_not_quiet(tmp_path: Path) -> None:
    record(tmp_path / "hop.json")
    document = load(tmp_path / "hop.json")
    document.stillness.update(quiet=False, others=0.725, stolen=0.031)
    said = "others used 72.5% of the processors, the host took 3.1%, **not a quiet one**"
    assert said in caption(document)
    document.stillness.update(quiet=True)
    assert "not a quiet one" not in caption(document)
    document.notes.append("No compiler here.")
    shown = section(document, COLUMNS).split("\n\n")
    assert shown[0].splitlines()[-1] == "| tiny | 0.90 (0.80…1.00) | 2.0 |"
    assert shown[1] == "No compiler here."


def test_every_benchmark_has_a_place_and_columns() -> None:
    page = (ROOT / README).read_text()
    for name in {**everything.SHORT, **everything.FULL}:
        assert f"<!-- bench:{name} -->\n" in page
        assert columns_of(name)


def test_the_readme_says_what_the_results_say(tmp_path: Path) -> None:
    page = (ROOT / README).read_text()
    copy = tmp_path / "README.md"
    copy.write_text(page)
    render_files(ROOT / RESULTS, copy, tmp_path / "payload.svg")
    assert copy.read_text() == page, "run `python -m bench.render`"


def payload_row(size: int, qos: int, security: str, ours: float) -> dict[str, Any]:
    keys = ("p50_ms", "mb_per_s", "broker_cpu_s_per_gb", "client_cpu_s_per_gb")
    return {
        "size_bytes": size,
        "qos": qos,
        "security": security,
        "ours": dict.fromkeys(keys, ours),
        "bare": dict.fromkeys(keys, 2 * ours),
    }


def test_the_payload_curve_has_a_line_for_each_side_by_size(tmp_path: Path) -> None:
    rows = [
        payload_row(8_000_000, 1, "plain", 5.0),
        payload_row(1000, 1, "plain", 1.0),
        payload_row(1000, 0, "plain", 9.0),
        payload_row(1000, 1, "TLS", 3.0),
    ]
    assert lines(rows, "p50_ms") == {
        ("plain", "ours"): ([1000, 8_000_000], [1.0, 5.0]),
        ("plain", "bare"): ([1000, 8_000_000], [2.0, 10.0]),
        ("TLS", "ours"): ([1000], [3.0]),
        ("TLS", "bare"): ([1000], [6.0]),
    }
    for name in ("one.svg", "two.svg"):
        draw(rows, "a machine", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "a machine" in (tmp_path / "one.svg").read_text()


def test_the_whole_set_is_run_by_commands_of_their_own(tmp_path: Path) -> None:
    made = everything.command("rpc", ["--rounds", "2"], tmp_path, Path("plans"))
    assert made[1:] == [
        *("-m", "bench.rpc", "--rounds", "2"),
        *("--json", str(tmp_path / "rpc.json"), "--plans", "plans"),
    ]
    assert "--plans" not in everything.command("hop", [], tmp_path, Path("plans"))
