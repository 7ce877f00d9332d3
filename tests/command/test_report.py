"""`shardline show --html`: one page that needs nothing else and says what the plan says."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from contract.errors import ExitCode
from contract.plan import Plan, Replica, place
from contract.prediction import Alternative, Verdict
from planner.problem import StageChoice
from shardline.report.page import render_page
from shardline.report.svg import width_of
from tests import resnet50_example as example
from tests.command.test_command import one_line
from tests.conftest import Run
from tests.tiny import make_tiny_plan

ROOT = Path(__file__).parent.parent.parent
VOID = {"meta", "br", "img", "hr", "input", "link"}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil/x onerror=alert(2)>&amp;"


class Page(HTMLParser):
    """The page taken apart: elements with their attributes, its text, whether it is nested well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def pictures(page: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg .*?</svg>", page, re.S)]
    return {str(picture.get("class")): picture for picture in found}


def of_class(picture: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in picture.iter(SVG + tag) if kind in (e.get("class") or "").split()]


def changed(plan: Plan, **changes: object) -> Plan:
    return Plan.model_validate({**dict(plan), **changes})


@pytest.fixture(scope="module")
def full() -> Plan:
    return example.resnet50_plan()


@pytest.fixture(scope="module")
def page(full: Plan) -> str:
    return render_page(full)


@pytest.fixture(scope="module")
def long_plan() -> Plan:
    """Nine stages, one of them on five devices, long names, and strategies that cannot be."""
    of = example.problem()
    names = [
        tuple(f"device-with-a-long-name-{i}-{k}" for k in range(5 if i == 3 else 1))
        for i in range(9)
    ]
    devices = [replace(of.devices[0], name=d) for group in names for d in group]
    of = replace(of, devices=tuple(devices))
    ends = (0, 2, 3, 4, 6, 8, 10, 13, 16, len(example.layers()))
    stages = [
        StageChoice(a, b, d) for (a, b), d in zip(itertools.pairwise(ends), names, strict=True)
    ]
    prediction = example.predict(of, stages, None, {})
    verdict = Verdict(
        alternatives=(
            Alternative(strategy="single", problem="no device can hold 412 MB"),
            Alternative(strategy="pipeline", prediction=prediction),
        ),
        recommended="single",
        chosen="pipeline",
        reason="Because.",
    )
    return changed(
        example.unplaced(stages),
        segments=example.segments(),
        prediction=prediction,
        verdict=verdict,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path, devices=())


def test_the_command_writes_the_page_and_says_where(run: Run, full: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(full.to_json())
    done = run("show", tmp_path, "--html", tmp_path / "report.html")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip() == f"written to {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").read_text() == render_page(full)


def test_the_page_is_nested_well_and_so_are_its_pictures(page: str, long_plan: Plan) -> None:
    for text in (page, render_page(long_plan)):
        Page(text)
        assert set(pictures(text)) == {
            *("pipeline-wide", "pipeline-narrow", "curve-wide", "curve-narrow")
        }
        identifiers = re.findall(r'\bid="([^"]*)"', text)
        assert len(identifiers) == len(set(identifiers))


def test_every_picture_has_a_title_and_a_description(page: str) -> None:
    for picture in pictures(page).values():
        described = str(picture.get("aria-labelledby")).split()
        texts = {e.get("id"): e.text for e in picture if e.tag in (SVG + "title", SVG + "desc")}
        assert [bool(texts[name]) for name in described] == [True, True]


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    for tag, attributes in Page(page).elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "use"}
        for name, value in attributes.items():
            assert name not in {"src", "href", "srcset", "xlink:href", "action", "data"}
            assert not name.startswith("on")
            assert "//" not in value or name == "xmlns"
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert "@import" not in page
    assert "@font-face" not in page


def test_hostile_names_are_texts_like_any_other(full: Plan) -> None:
    assert full.prediction is not None
    assert full.verdict is not None
    first, *others = full.prediction.devices
    hostile = first.model_copy(update={"device": HOSTILE})
    expected = full.prediction.model_copy(
        update={"devices": (hostile, *others), "bottleneck": HOSTILE, "based_on": HOSTILE}
    )
    segments = tuple(s.model_copy(update={"cut": HOSTILE}) for s in full.segments)
    plan = changed(
        full,
        name=HOSTILE,
        model=full.model.model_copy(update={"name": HOSTILE, "weights": HOSTILE}),
        prediction=expected,
        segments=segments,
        verdict=full.verdict.model_copy(update={"reason": HOSTILE}),
        placement=(),
        topic_map=(),
    )
    text = render_page(plan)
    found = Page(text)
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "img"})
    assert found.text.count(HOSTILE) > 10
    assert len(pictures(text)) == 4


def test_control_characters_do_not_break_the_page(full: Plan) -> None:
    name = "a\x00b\x1bc\nd\ud800"
    assert full.prediction is not None
    devices = tuple(d.model_copy(update={"device": name}) for d in full.prediction.devices)
    text = render_page(
        changed(
            full,
            model=full.model.model_copy(update={"name": name}),
            prediction=full.prediction.model_copy(update={"devices": devices}),
            placement=(),
            topic_map=(),
        )
    )
    text.encode()
    assert len(pictures(text)) == 4
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d" in Page(text).text


def test_names_stay_in_their_cards(long_plan: Plan) -> None:
    for name, picture in pictures(render_page(long_plan)).items():
        cards = of_class(picture, "g", "device")
        assert len(cards) == (13 if name.startswith("pipeline") else 0)
        for card in cards:
            frame = of_class(card, "rect", "outline")[0]
            left, width = float(frame.get("x", 0)), float(frame.get("width", 0))
            label = of_class(card, "text", "label")[0]
            assert width_of(label.text or "", 14.5) <= left + width - float(label.get("x", 0))


def test_a_plan_that_is_not_placed_shows_the_devices_it_was_predicted_for(long_plan: Plan) -> None:
    assert long_plan.prediction is not None
    for name, picture in pictures(render_page(long_plan)).items():
        described = str(picture.findtext(f"{SVG}desc"))
        for device in long_plan.prediction.devices if name.startswith("pipeline") else ():
            assert device.device in described


def test_one_stage_and_figures_of_nought_make_a_page(full: Plan) -> None:
    of = example.problem()
    stages = [StageChoice(0, of.num_segments, ("pi-0",))]
    prediction = example.predict(of, stages, None, {})
    nought = {"compute_ms": 0.0, "relay_ms": 0.0, "transfer_ms": 0.0, "memory_bytes": 0}
    device = prediction.devices[0].model_copy(update={**nought, "memory_limit_bytes": 0})
    segments = tuple(
        s.model_copy(update={"ms": 0.0, "output_bytes": 0}) for s in example.segments()
    )
    assert full.measurement is not None
    plan = changed(
        example.unplaced(stages),
        prediction=prediction.model_copy(update={"devices": (device,)}),
        segments=segments,
        measurement=full.measurement.model_copy(update={"time_unix_s": 1e300}),
    )
    text = Page(render_page(plan)).text
    assert "19 legal cuts, none chosen" in text
    assert "optimal" in text
    assert "at an unknown time" in text


def test_every_device_tensor_and_figure_of_the_plan_is_on_the_page(full: Plan, page: str) -> None:
    text = Page(page).text
    assert full.prediction is not None
    for device in full.prediction.devices:
        assert device.device in text
    for stage in full.stages:
        assert stage.outputs[0].name in text
    for segment in full.segments:
        assert segment.cut in text
    for words in (full.plan_id, full.model.name, "int8", "✓ recommended", "torch 2.13.0+cpu"):
        assert words in text
    for package, version in full.verified_with.items():
        assert f"{package} {version}" in text


def rows(page: str, kind: str) -> Iterator[list[str]]:
    table = re.search(rf'<table class="[^"]*{kind}">(.*?)</table>', page, re.S)
    assert table
    for row in re.findall(r"<tr.*?</tr>", table[1], re.S):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        yield [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells]


def test_figures_are_those_of_the_plan(full: Plan) -> None:
    assert full.prediction is not None
    assert full.measurement is not None
    expected = full.prediction.model_copy(
        update={
            "images_per_s": 51.34,
            "bound_images_per_s": 51.34 / 0.969,
            "latency_ms": 118.4,
            "loaded_latency_ms": 2345.0,
            "broker_bytes_per_image": 903_168.0,
        }
    )
    verdict = Verdict(
        alternatives=(
            Alternative(strategy="single", problem="does not fit pi-0"),
            Alternative(strategy="mixed", prediction=expected),
        ),
        recommended="mixed",
        chosen="mixed",
        reason="Mixed it is.",
    )
    measured = full.measurement.model_copy(update={"images_per_s": 40.0})
    page = render_page(changed(full, prediction=expected, verdict=verdict, measurement=measured))
    text = Page(page).text
    assert "Mixed it is." in text
    assert "within 3.1 % of the bound" in text
    assert "measured 40.0" in text
    memory = f"{expected.largest_memory_bytes / 1e6:.0f} MB"
    assert list(rows(page, "verdict"))[1:] == [
        ["single", "does not fit pi-0"],
        ["mixed ✓ recommended", "51.3", "118 ms", "2.35 s", memory, "903 KB"],
    ]
    compared = list(rows(page, "compared"))
    assert ["plan", "images/s", "51.3", "40.0", "+28.4 %", ""] in compared


def test_widths_and_thicknesses_are_in_proportion(full: Plan, page: str) -> None:
    assert full.prediction is not None
    for name in ("pipeline-wide", "pipeline-narrow"):
        picture = pictures(page)[name]
        widths = [float(rect.get("width", 0)) for rect in of_class(picture, "rect", "compute")]
        times = [device.compute_ms for device in full.prediction.devices]
        assert widths == pytest.approx([t / times[0] * widths[0] for t in times], abs=0.05)
        arrows = [float(e.get("stroke-width", 0)) for e in of_class(picture, "path", "arrow")]
        sizes = [edge.bytes_per_batch for edge in full.prediction.edges]
        assert arrows[:3] == pytest.approx([16 * s / max(sizes) for s in sizes[:3]], abs=0.05)
    used = [float(w) for w in re.findall(r'class="used" style="width:([0-9.]+)%', page)]
    memory = [device.memory_bytes for device in full.prediction.devices]
    assert used == pytest.approx([100 * m / 1_600_000_000 for m in memory], abs=0.01)


def test_the_bottleneck_is_marked_in_words(full: Plan) -> None:
    assert full.prediction is not None
    for words, kind in (
        ("stage 2 on pi-attic", "stage"),
        ("the broker's link", "broker"),
        ("the client", "client"),
    ):
        expected = full.prediction.model_copy(update={"bottleneck": words})
        page = render_page(changed(full, prediction=expected))
        wide = pictures(page)["pipeline-wide"]
        marked = [e for e in wide.iter(SVG + "rect") if "hot" in (e.get("class") or "").split()]
        assert {str(e.get("class")).split()[0] for e in marked} == {kind}
        assert "bottleneck" in [e.text for e in of_class(wide, "text", "tag-words")]
        described = str(wide.findtext(f"{SVG}desc"))
        assert re.findall(r"stage (\d) \(the bottleneck\)", described) == (
            ["2"] if kind == "stage" else []
        )
        assert words in Page(page).text.replace("\u2019", "'")


def test_the_curve_marks_legal_and_chosen_cuts(full: Plan, page: str) -> None:
    picture = pictures(page)["curve-wide"]
    chosen = of_class(picture, "path", "chosen-mark")
    assert len(chosen) == full.num_stages - 1
    assert len(of_class(picture, "path", "legal-mark")) == len(full.segments) - 1 - len(chosen)
    words = [e.text or "" for e in of_class(picture, "text", "chosen-words")]
    assert words == ["relu_24 · 3.2 MB → 803 KB int8", "relu_39 · 3.2 MB"]
    assert len(of_class(picture, "rect", "bytes")) == len(full.segments) - 1 + len(chosen)


def test_nothing_is_drawn_outside_its_picture_or_over_another_label(
    page: str, long_plan: Plan
) -> None:
    for text in (page, render_page(long_plan)):
        for picture in pictures(text).values():
            _, _, width, height = map(float, str(picture.get("viewBox")).split())
            for words in picture.iter(SVG + "text"):
                x, y = float(words.get("x", 0)), float(words.get("y", 0))
                wide = 0 if words.get("transform") else width_of(words.text or "", 13)
                start = {"middle": x - wide / 2, "end": x - wide}.get(
                    words.get("text-anchor", "start"), x
                )
                assert start >= -1, words.text
                assert start + wide <= width + 1, words.text
                assert 8 <= y <= height, words.text
            boxes = [
                [float(e.get(name, 0)) for name in ("x", "y", "width", "height")]
                for e in of_class(picture, "rect", "chosen-label")
            ]
            for (ax, ay, aw, ah), (bx, by, bw, bh) in itertools.combinations(boxes, 2):
                assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_a_plan_without_figures_says_what_it_does_not_hold(bare: Plan) -> None:
    text = Page(render_page(bare)).text
    for words in (
        "holds no verdict",
        "holds no prediction",
        "holds no figures of its segments",
        "no prediction of memory",
        "has not been measured",
        "no device yet",
    ):
        assert words in text
    for stage in bare.stages:
        assert stage.outputs[0].name in text


def test_each_missing_part_leaves_the_others_as_they_are(full: Plan) -> None:
    for part, words in (
        ("verdict", "holds no verdict"),
        ("prediction", "holds no prediction"),
        ("measurement", "has not been measured"),
        ("segments", "holds no figures of its segments"),
    ):
        text = Page(render_page(changed(full, **{part: () if part == "segments" else None}))).text
        absences = re.findall(r"holds no (?:verdict|prediction:|figures)|not been measured", text)
        assert words in text
        assert len(set(absences)) == 1


def test_segments_of_another_model_make_no_curve(full: Plan) -> None:
    page = render_page(changed(full, segments=full.segments[:-1]))
    assert "not those of its stages" in Page(page).text
    assert "curve-wide" not in pictures(page)


def test_a_prediction_for_other_devices_is_called_so(full: Plan, bare: Plan) -> None:
    moved = place(bare, [[Replica(device=f"new-{i}")] for i in range(3)], "default")
    plan = changed(moved, prediction=full.prediction)
    text = Page(render_page(plan)).text
    assert "placed on other devices than its prediction is for" in text
    assert "new-0" in text
    assert "placed on other devices" not in Page(render_page(full)).text


def test_the_same_plan_gives_the_same_bytes(full: Plan, page: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(full.to_json())
    code = (
        "import sys; from pathlib import Path; from contract.plan import load_plan; "
        "from shardline.report.page import write_page; "
        "write_page(load_plan(Path(sys.argv[1])), Path(sys.argv[1]) / 'page.html')"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )
    assert (tmp_path / "page.html").read_bytes() == page.encode()


def test_a_page_stays_small(page: str, long_plan: Plan) -> None:
    assert len(page.encode()) < 100_000
    assert len(render_page(long_plan).encode()) < 150_000


def test_an_impossible_file_is_one_line(run: Run, full: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(full.to_json())
    file = tmp_path / "absent" / "report.html"
    one_line(run("show", tmp_path, "--html", file), ExitCode.SETTINGS, str(file), "folder")
    done = run("show", tmp_path, "--html", tmp_path / "x.html", "--json")
    one_line(done, ExitCode.SETTINGS, "--html", "--json")


def test_without_its_package_the_page_says_how_to_get_it(
    run: Run, full: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.json").write_text(full.to_json())
    monkeypatch.delitem(sys.modules, "shardline.report.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = run("show", tmp_path, "--html", tmp_path / "report.html")
    one_line(done, ExitCode.ENVIRONMENT, "jinja2", "shardline[planner]")


def test_an_installed_shardline_brings_the_template() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "shardline.report" in tool["packages"]
    beside = {f.name for f in (ROOT / "shardline/report").iterdir() if f.is_file()}
    data = {name for name in beside if not name.endswith(".py")}
    assert set(tool["package-data"]["shardline.report"]) == data


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(page: str, scheme: int) -> None:
    """WCAG 2 AA for small text: a contrast of 4.5."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.S)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[scheme]))
    backgrounds = ("paper", "raised", "band", "fill", "hot-fill")
    pairs = [(ink, ground) for ink in ("ink",) for ground in backgrounds]
    pairs += [("quiet", ground) for ground in ("paper", "raised", "band")]
    pairs += [("on-hot", "hot"), ("green", "green-fill")]
    for ink, ground in pairs:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"
