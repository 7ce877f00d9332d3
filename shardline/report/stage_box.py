"""A stage drawn: a box with a card for each of its devices.

In each card, what is filled is the time for one batch, on one scale for all devices: solid the
engine, striped receiving and sending, and a thin line below for its link.
"""

from shardline import figures
from shardline.report.pipeline_view import DeviceView, PipelineView, StageView
from shardline.report.svg import Drawing, fit, width_of

HEAD, CARD, GAP, PAD = 60, 56, 8, 10


def stage_height(stage: StageView) -> float:
    """How high the box of a stage is."""
    return HEAD + max(1, len(stage.devices)) * (CARD + GAP) - GAP + PAD


def draw_stage(
    picture: Drawing,
    view: PipelineView,
    stage: StageView,
    left: float,
    top: float,
    width: float,
) -> None:
    """The box of a stage, its upper left corner at ``left``, ``top``."""
    hot = " hot" if stage.is_bottleneck else ""
    picture.open("")
    picture.rect(left, top, width, stage_height(stage), f"stage{hot}", 10)
    picture.text(left + PAD, top + 23, f"Stage {stage.spec.stage_index}", "heading")
    if stage.is_bottleneck:
        draw_tag(picture, left + width - PAD, top - 11)
    words = stage.segments
    if stage.interval_ms is not None:
        words = f"a batch every {figures.ms(stage.interval_ms)}"
    picture.text(left + PAD, top + 44, fit(words, width - 2 * PAD, 13), "small")
    inside = width - 2 * PAD
    for index, device in enumerate(stage.devices):
        y = top + HEAD + index * (CARD + GAP)
        _card(picture, view, device, left + PAD, y, inside, stage.is_bottleneck)
    if not stage.devices:
        picture.rect(left + PAD, top + HEAD, inside, CARD, "card absent", 6)
        picture.text(left + PAD + 10, top + HEAD + 33, "no device yet", "small")
    picture.close()


def _card(
    picture: Drawing,
    view: PipelineView,
    device: DeviceView,
    x: float,
    y: float,
    width: float,
    hot: bool,
) -> None:
    kind = "hot" if hot else "calm"
    expected = device.prediction
    picture.open(f"device {kind}", _device_hint(device))
    picture.rect(x, y, width, CARD, "card", 6)
    if expected is not None:
        scale = width / max(view.longest_ms, 1e-9)
        compute, relay = expected.compute_ms * scale, expected.relay_ms * scale
        picture.rect(x, y, compute, CARD, "compute", 6 if compute > 12 else 0)
        pattern = f"{picture.name}-{kind}"
        picture.rect(x + compute, y, relay, CARD, "relay", pattern=pattern)
        picture.rect(x, y + CARD - 8, expected.transfer_ms * scale, 3, "link")
    picture.rect(x, y, width, CARD, "outline", 6)
    name, share, time, busy = _card_words(device, width - 20)
    picture.text(x + 10, y + 21, name, "label")
    picture.text(x + 10, y + 40, time, "small")
    for line, words in ((21, share), (40, busy)):
        if words:
            picture.text(x + width - 10, y + line, words, "small", "end")
    picture.close()


def _card_words(device: DeviceView, room: float) -> tuple[str, str, str, str]:
    """Name and share of the first line, time and utilisation of the second, as far as they fit."""
    expected = device.prediction
    name = fit(device.name, room, 14.5)
    if expected is None:
        return name, "", "no prediction", ""
    share = ""
    if expected.share < 0.9995:
        part = figures.percent(expected.share)
        left = room - width_of(name, 14.5) - 8
        ways = (f"{part} of batches", f"takes {part}", "")
        share = next(words for words in ways if width_of(words, 13) <= max(left, 0))
    time = f"{figures.ms(device.processor_ms)} a batch"
    busy = f"{figures.percent(expected.utilisation)} busy"
    if width_of(time, 13) + width_of(busy, 13) + 6 > room:
        time = figures.ms(device.processor_ms)
    return name, share, time, busy


def _device_hint(device: DeviceView) -> str:
    expected = device.prediction
    if expected is None:
        return device.name
    return (
        f"{device.name}: compute {figures.ms(expected.compute_ms)}, "
        f"relay {figures.ms(expected.relay_ms)}, link {figures.ms(expected.transfer_ms)}, "
        f"{figures.percent(expected.share)} of the batches"
    )


def draw_tag(picture: Drawing, right: float, top: float) -> None:
    """The word that marks the bottleneck."""
    picture.rect(right - 84, top, 84, 21, "tag", 10)
    picture.text(right - 42, top + 15, "bottleneck", "tag-words", "middle")
