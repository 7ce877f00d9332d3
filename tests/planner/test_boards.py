"""Devices that nobody measured: published figures are met, and what is not published says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from contract.described import DescribedDevice, DescribedFleet
from contract.errors import SettingsError
from contract.kind import Kind
from deploy.device_file import load_device_file
from planner.cost_model import REFERENCE_RELAY
from planner.devices.board_estimates import ModelFacts
from planner.devices.boards import (
    basis,
    board_costs,
    broker_costs,
    described_basis,
    described_costs,
    link_of,
)
from planner.devices.published import (
    BOARDS,
    FLOPS_PER_IMAGE,
    NCNN_TO_ONNXRUNTIME,
    NCNN_TO_ONNXRUNTIME_V8_0,
)
from planner.problem import DeviceCosts, Link
from planner.profiler import Profile

ROOT = Path(__file__).parents[2]
REFERENCE = Profile((1.0, 0.0, 6.0, 3.0), whole_ms=10.0, batch_size=1, threads=1, rounds=5)


def model(name: str) -> ModelFacts:
    return ModelFacts(f"torchvision:{name}", FLOPS_PER_IMAGE[name])


def device(kind: Kind = Kind.RASPBERRY_PI_5, **fields: object) -> DescribedDevice:
    return DescribedDevice(name="pi", kind=kind, **fields)  # type: ignore[arg-type]


def whole_ms(described: DescribedDevice, facts: ModelFacts, batch_size: int = 1) -> float:
    return sum(board_costs(described, facts, REFERENCE, batch_size).segment_ms)


@pytest.mark.parametrize(
    ("kind", "name", "expected_ms"),
    [
        (Kind.RASPBERRY_PI_5, "resnet50", 46.21 * NCNN_TO_ONNXRUNTIME),
        (Kind.RASPBERRY_PI_5, "mobilenet_v2", 10.52 * NCNN_TO_ONNXRUNTIME),
        (Kind.RASPBERRY_PI_5, "vgg16", 129.24 * NCNN_TO_ONNXRUNTIME),
        (Kind.RASPBERRY_PI_4, "resnet50", 262.83 * NCNN_TO_ONNXRUNTIME_V8_0),
        (Kind.RASPBERRY_PI_4, "alexnet", 76.40 * NCNN_TO_ONNXRUNTIME_V8_0),
        (Kind.RASPBERRY_PI_3B_PLUS, "resnet18", 271.93 * NCNN_TO_ONNXRUNTIME_V8_0),
        (Kind.RASPBERRY_PI_ZERO_2_W, "mobilenet_v2", 147.39 * NCNN_TO_ONNXRUNTIME_V8_0),
    ],
)
def test_the_whole_model_takes_what_is_published_for_that_board(
    kind: Kind, name: str, expected_ms: float
) -> None:
    assert whole_ms(device(kind), model(name)) == pytest.approx(expected_ms)
    assert whole_ms(device(kind), model(name), 8) == pytest.approx(8 * expected_ms)
    said = basis(device(kind), model(name))
    assert "published" in said
    assert "ncnn" in said
    assert "operations" not in said


def test_the_shares_of_the_segments_are_those_of_this_machine() -> None:
    times = board_costs(device(), model("resnet50"), REFERENCE, 4).segment_ms
    assert [ms / sum(times) for ms in times] == pytest.approx([0.1, 0.0, 0.6, 0.3])


def test_a_model_of_which_nothing_is_published_is_scaled_from_the_nearest_and_says_so() -> None:
    nearest = model("resnet50")
    other = ModelFacts("torchvision:inception_v3", 11_441_589_057)
    ratio = other.flops_per_image / nearest.flops_per_image
    assert whole_ms(device(), other) == pytest.approx(ratio * whole_ms(device(), nearest))
    said = basis(device(), other)
    assert "resnet50" in said
    assert "operations of torchvision:inception_v3, which has no figure" in said
    small = ModelFacts("net.onnx", 500_000_000)
    assert "mobilenet_v2" in basis(device(), small)
    assert whole_ms(device(), small) < whole_ms(device(), model("mobilenet_v2"))


def test_a_published_name_at_another_size_is_another_model() -> None:
    large = replace(model("mobilenet_v2"), flops_per_image=4 * FLOPS_PER_IMAGE["mobilenet_v2"])
    plain = model("mobilenet_v2")
    assert whole_ms(device(), large) == pytest.approx(4 * whole_ms(device(), plain))
    assert "mobilenet_v2" in basis(device(), large)  # though resnet18 has a nearer number
    assert "x 4 for the operations" in basis(device(), large)
    assert "another input size" in basis(device(), large)
    classes = replace(plain, flops_per_image=plain.flops_per_image - 10_000_000)
    assert whole_ms(device(), classes) == pytest.approx(whole_ms(device(), plain))


@pytest.mark.parametrize("kind", [Kind.RASPBERRY_PI_3B_PLUS, Kind.RASPBERRY_PI_ZERO_2_W])
def test_what_a_small_board_cannot_hold_is_as_much_slower_there_as_another_model(
    kind: Kind,
) -> None:
    four = device(Kind.RASPBERRY_PI_4)
    expected = whole_ms(device(kind), model("resnet50")) / whole_ms(four, model("resnet50"))
    slower = whole_ms(device(kind), model("vgg16")) / whole_ms(four, model("vgg16"))
    assert slower == pytest.approx(expected)
    assert "estimated from a Pi 4's" in basis(device(kind), model("vgg16"))
    assert "published" not in basis(device(kind), model("vgg16"))


def test_speed_makes_everything_on_the_processor_faster_and_nothing_on_the_link() -> None:
    for kind in Kind:
        plain = board_costs(device(kind), model("resnet50"), REFERENCE, 1)
        fast = board_costs(device(kind, speed=2.0), model("resnet50"), REFERENCE, 1)
        assert fast.segment_ms == pytest.approx(tuple(ms / 2 for ms in plain.segment_ms))
        assert fast.relay.message_ms == pytest.approx(plain.relay.message_ms / 2)
        assert fast.relay.byte_ms == pytest.approx(plain.relay.byte_ms / 2)
        assert fast.link == plain.link
        assert "2 times the speed" in basis(device(kind, speed=2.0), model("resnet50"))


def test_fewer_cores_are_slower_up_to_what_is_published_for_one() -> None:
    times = [whole_ms(device(cores=cores), model("resnet50")) for cores in (4, 3, 2, 1)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(46.21 * NCNN_TO_ONNXRUNTIME)
    assert times[-1] == pytest.approx(89.43 * NCNN_TO_ONNXRUNTIME)
    assert "2 of 4 cores" in basis(device(cores=2), model("resnet50"))


def test_a_machine_that_is_no_board_is_like_this_one() -> None:
    costs = board_costs(device(Kind.OTHER_AMD64), model("resnet50"), REFERENCE, 2)
    assert costs.segment_ms == pytest.approx((2.0, 0.0, 12.0, 6.0))
    assert costs.relay == REFERENCE_RELAY
    assert "this machine's times" in basis(device(Kind.OTHER_AMD64), model("resnet50"))


def test_a_profile_at_another_batch_size_is_scaled_by_the_images() -> None:
    four = replace(REFERENCE, batch_size=4)
    costs = board_costs(device(Kind.OTHER_ARM64), model("resnet50"), four, 2)
    assert costs.segment_ms == pytest.approx((0.5, 0.0, 3.0, 1.5))
    pi = board_costs(device(), model("resnet50"), four, 2)
    assert sum(pi.segment_ms) == pytest.approx(2 * 46.21 * NCNN_TO_ONNXRUNTIME)


def test_a_batch_takes_as_many_times_as_long_as_it_does_here_where_that_is_known() -> None:
    single = replace(REFERENCE, segment_ms=(1.0, 0.0, 1.0, 2.0), whole_ms=4.0)
    eight = replace(REFERENCE, batch_size=8)  # 10 ms: 2.5 times as long as one image
    costs = board_costs(device(), model("alexnet"), eight, 8, single=single)
    expected = 2.5 * whole_ms(device(), model("alexnet"))
    assert sum(costs.segment_ms) == pytest.approx(expected)
    fleet = DescribedFleet(devices=(device(),))
    (same,) = described_costs(fleet, model("alexnet"), eight, 8, single=single)
    assert same == costs


def test_boards_are_slower_at_relaying_in_the_order_of_their_cores() -> None:
    relays = [
        board_costs(device(kind), model("resnet18"), REFERENCE, 1).relay.message_ms
        for kind in (
            Kind.RASPBERRY_PI_5,
            Kind.RASPBERRY_PI_4,
            Kind.RASPBERRY_PI_3B_PLUS,
            Kind.RASPBERRY_PI_ZERO_2_W,
        )
    ]
    assert relays == sorted(relays)
    assert relays[0] == pytest.approx(2 * REFERENCE_RELAY.message_ms)


def test_weights_that_are_not_prepacked_cost_what_they_cost_here() -> None:
    costs = board_costs(device(), model("vgg16"), REFERENCE, 1, unpacked_ratio=1.5)
    assert costs.unpacked_ms == pytest.approx(tuple(1.5 * ms for ms in costs.segment_ms))
    assert board_costs(device(), model("vgg16"), REFERENCE, 1).unpacked_ms is None


def test_what_the_file_says_of_a_link_goes_before_what_its_kind_has() -> None:
    usual = BOARDS[Kind.RASPBERRY_PI_4].link
    assert link_of(device(Kind.RASPBERRY_PI_4)) == usual
    said = device(Kind.RASPBERRY_PI_4, up_bytes_per_s=1e6, latency_ms=0.0)
    assert link_of(said) == Link(1e6, usual.down_bytes_per_s, 0.0)


def test_the_broker_has_the_card_of_its_machine_unless_the_file_says_more() -> None:
    fleet = DescribedFleet(devices=(device(),), broker_kind=Kind.RASPBERRY_PI_3B_PLUS)
    assert broker_costs(fleet).bytes_per_s == pytest.approx(300e6 / 8)
    assert broker_costs(fleet.model_copy(update={"broker_bytes_per_s": 5e6})).bytes_per_s == 5e6
    unknown = fleet.model_copy(update={"broker_kind": None})
    assert broker_costs(unknown).bytes_per_s == pytest.approx(941e6 / 8)


MEASURED = DeviceCosts("four-0", (5.0, 5.0, 5.0, 5.0), REFERENCE_RELAY, memory_bytes=500)


def measured_fleet(**fields: object) -> DescribedFleet:
    names = ("four-0", "four-1")
    described = device(Kind.RASPBERRY_PI_4, profile="p.json", memory_bytes=600, **fields)
    return DescribedFleet(
        devices=(device(), *(described.model_copy(update={"name": name}) for name in names))
    )


def test_a_measured_device_costs_what_was_measured() -> None:
    fleet = measured_fleet(up_bytes_per_s=1e6)
    costs = described_costs(fleet, model("resnet50"), REFERENCE, 1, {"p.json": [MEASURED]})
    assert [c.name for c in costs] == ["pi", "four-0", "four-1"]
    usual = BOARDS[Kind.RASPBERRY_PI_4].link
    for measured in costs[1:]:
        assert measured.segment_ms == MEASURED.segment_ms
        assert measured.memory_bytes == 500
        assert measured.link == replace(usual, up_bytes_per_s=1e6)
    linked = replace(MEASURED, link=Link(2e6, 3e6, 1.0), memory_bytes=None)
    costs = described_costs(measured_fleet(), model("resnet50"), REFERENCE, 1, {"p.json": [linked]})
    assert (costs[1].link, costs[1].memory_bytes) == (linked.link, 600)
    said = described_basis(fleet, model("resnet50"))
    assert said.count("measured: p.json") == 1
    assert "published" in said


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ([], "no device"),
        ([replace(MEASURED, name="a"), replace(MEASURED, name="b")], "a, b"),
        ([replace(MEASURED, segment_ms=(1.0,))], "1 segments, this one has 4"),
    ],
)
def test_a_profile_that_is_not_of_this_device_or_model_is_told(
    profile: list[DeviceCosts], words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        described_costs(measured_fleet(), model("vgg16"), REFERENCE, 1, {"p.json": profile})
    assert "four-0" in str(caught.value)
    assert "shardline profile" in str(caught.value)


def test_the_drawer_can_be_planned_for() -> None:
    fleet = load_device_file(ROOT / "examples" / "fleets" / "drawer.yaml")
    costs = described_costs(fleet, model("resnet50"), REFERENCE, 1)
    times = [sum(c.segment_ms) for c in costs]
    assert times == sorted(times)
    assert times[0] == pytest.approx(46.21 * NCNN_TO_ONNXRUNTIME)
    assert costs[1].same_kind(costs[2])
    assert all(c.memory_bytes for c in costs)


def test_the_page_has_every_figure_that_is_planned_with() -> None:
    text = (ROOT / "docs" / "hardware.md").read_text()
    for kind, board in BOARDS.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{kind}` | "))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells == [
            *(f"{ms:.2f}" for ms in board.whole_ms.values()),
            *(f"({ms:.0f})" for ms in board.estimated_ms.values()),
            f"{board.engine_factor:g}",
            f"{board.one_core_ratio:.2f}",
            f"{board.core_speed:.2f}",
            f"{board.link.up_bytes_per_s * 8 / 1e6:g} Mbit/s",
            f"{board.link.latency_ms:g} ms",
        ]
        models = [*board.whole_ms, *board.estimated_ms]
        assert models == ["mobilenet_v2", "resnet18", "resnet50", "alexnet", "vgg16"]
