"""The screen of `shardline top` as lines: what stands on it, at any size, with any text in it."""

from pathlib import Path

import pytest
from rich.text import Text

from client.watch.bound import find_bound
from contract.status import DeviceState, EventKind, ShardState
from shardline.top import amounts, drawing
from shardline.top.devices import ORDERS, rows, state
from shardline.top.screen import HELP, Choice, bound_text, screen
from tests.watch import scenes
from tests.watch.cluster import Cluster, plan_on

ADDRESS = "127.0.0.1:1883"


def lines_of(
    cluster: Cluster, width: int = 80, height: int = 24, choice: Choice | None = None
) -> list[str]:
    drawn = screen(cluster.view(), ADDRESS, width, height, choice)
    assert [line.cell_len for line in drawn] == [width] * height
    assert all("\n" not in line.plain for line in drawn)
    return [line.plain.rstrip() for line in drawn]


def line_with(lines: list[str], words: str) -> str:
    found = [line for line in lines if words in line]
    assert found, f"{words!r} is on none of:\n" + "\n".join(lines)
    return found[0]


def test_everything_is_on_eighty_by_twenty_four(tmp_path: Path) -> None:
    lines = lines_of(scenes.running(tmp_path))
    header = line_with(lines, "shardline top")
    assert "home at 127.0.0.1:1883" in header
    assert "mobilenet_v2" in header
    assert "3 stages, batch 8" in header
    flow = line_with(lines, "pipeline")
    assert "client-1a2b3c4d ▶ 0 pi-0 ▶ 1 pi-1+pi-3 ▶ 2 pi-2 ▶ client" in flow
    rate = line_with(lines, "78.1 images/s  ")
    assert "▇▇" in rate
    for words in ("p50 30", "p95 495 ms", "p99 553 ms"):
        assert words in rate
    window = line_with(lines, "window 6, 6 in flight")
    assert "client-1a2b3c4d: window 6" in window
    assert "predicted 84.0 images/s" in window
    assert "Stage 1 is the slowest, and pi-1 is slowed" in line_with(lines, "bound ")
    stage = next(line for line in lines if line.startswith("  1 █"))
    for words in (" 95%", "120 ms", "38.0 ms", "0.05 s", "5.07M", "pi-1"):
        assert words in stage
    device = line_with(lines, "pi-1   ready")
    for words in (" 1 ", " 97%", " 3 ", "112%", "82.8M", "2.40G", " 8", "3.74M", "2.54M", "warm"):
        assert words in device
    spare = line_with(lines, "pi-4   idle")
    assert " — " in spare
    ledger = line_with(lines, "ledger")
    assert "submitted 1224" in ledger
    assert "delivered 1218" in ledger
    assert "lost 0" in ledger
    broker = line_with(lines, "broker ")
    assert "in 9.7 MB/s" in broker
    assert "up 2d" in broker
    events = [line for line in lines if "device_lost" in line or "batch_retried" in line]
    assert "batch_retried ×2 batch 7:812: pi-3 was lost" in events[0]
    assert "device_lost device pi-3: offline" in events[1]
    assert lines[-1] == " q quit   b what bounds it   d more devices   s sort   ? help"


def test_a_wide_terminal_shows_more_of_each_device(tmp_path: Path) -> None:
    lines = lines_of(scenes.running(tmp_path), 140, 45)
    device = line_with(lines, "pi-1   ready")
    assert "121 ms" in device
    assert "warm (volt)" in device
    assert "compute" in line_with(lines, "device ")
    assert "pi-1+pi-3" in next(line for line in lines if line.startswith("  1 █"))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 250])
@pytest.mark.parametrize("height", [5, 10, 16, 24, 45, 70])
def test_any_size_is_filled_exactly_and_keeps_its_keys(
    width: int, height: int, tmp_path: Path
) -> None:
    for number, scene in enumerate((scenes.running, scenes.fifty, scenes.broker_gone)):
        lines = lines_of(scene(tmp_path / str(number)), width, height)
        assert lines[-1].startswith(" q quit")
    assert lines_of(scenes.nothing_yet(), width, height)


def test_a_lost_device_and_its_stage_are_said_in_words(tmp_path: Path) -> None:
    lines = lines_of(scenes.a_device_lost(tmp_path))
    assert "OFFLINE" in line_with(lines, "pi-2   ")
    assert "no ready device" in next(line for line in lines if line.startswith("  2 "))
    assert "Stage 2 has no ready device: pi-2 is offline" in line_with(lines, "bound ")
    assert "82.8M" not in line_with(lines, "pi-2   OFFLINE")  # those figures mean nothing now


def test_without_a_connection_a_banner_says_how_old_everything_is(tmp_path: Path) -> None:
    cluster = scenes.broker_gone(tmp_path)
    lines = lines_of(cluster)
    assert lines[1].startswith("no connection for 12 s: shown is what was last heard")
    assert "ready" in line_with(lines, "pi-0   ")  # what was last heard
    assert "not heard" in next(line for line in lines if line.startswith("  1 "))
    assert line_with(lines, "client-1a2b3c4d").endswith("last heard 12s ago")
    drawn = screen(cluster.view(), ADDRESS, 80, 24, trouble="cannot reach it")
    assert "last heard (cannot reach it)" in drawn[1].plain
    cluster.state.set_connected(True)
    cluster.metrics("pi-0")
    lines = lines_of(cluster)
    assert "last heard 12s ago, not feeding now" in line_with(lines, "client-1a2b3c4d")
    assert not any("no connection" in line for line in lines)
    assert "ready" in line_with(lines, "pi-0   ")


def test_figures_that_are_old_are_dim(tmp_path: Path) -> None:
    def style_of(cluster: Cluster, words: str) -> str:
        line = next(
            line
            for line in screen(cluster.view(), ADDRESS, 80, 24)
            if line.plain.startswith("pi-0")
        )
        at = line.plain.index(words)
        return " ".join(str(span.style) for span in line.spans if span.start <= at < span.end)

    cluster = scenes.running(tmp_path)
    assert "dim" not in style_of(cluster, "82.8M")
    cluster.clock.now += 10
    assert "dim" in style_of(cluster, "82.8M")


def test_fifty_devices_are_all_reached_by_paging_and_sorted_as_asked(tmp_path: Path) -> None:
    cluster = scenes.fifty(tmp_path)
    seen: set[str] = set()
    choice = Choice()
    for page in range(20):
        lines = lines_of(cluster, 80, 24, choice)
        assert f"page {page + 1} of " in line_with(lines, "devices  50")
        shown = {line.split()[0] for line in lines if line.startswith("pi-")}
        assert shown
        assert not shown & seen
        seen |= shown
        if len(seen) == scenes.MANY:
            break
        choice = choice.next_page()
    assert len(seen) == scenes.MANY
    assert line_with(lines_of(cluster, 80, 24, choice.next_page()), "pi-00")  # from the start
    busiest = choice.next_order()
    assert (busiest.order, busiest.page) == ("busy", 0)
    lines = lines_of(cluster, 80, 24, busiest)
    assert next(line for line in lines if line.startswith("pi-")).startswith("pi-49")
    order = [busiest.order]
    while busiest.next_order().order not in order:
        busiest = busiest.next_order()
        order.append(busiest.order)
    assert sorted(order) == sorted(ORDERS)


def test_a_plan_of_many_stages_shows_the_busiest(tmp_path: Path) -> None:
    stages = [["pi-0"], ["pi-1"], ["pi-2"]]
    cluster = Cluster(plan_on(tmp_path, stages))
    for index, (name,) in enumerate(stages):
        cluster.online(name)
        cluster.metrics(name, utilisation=0.1 + 0.4 * index)
    drawn = [line.plain for line in screen(cluster.view(), ADDRESS, 80, 24)]
    assert sum(line.startswith(("  0 █", "  1 █", "  2 █")) for line in drawn) == 3
    from shardline.top.stages import stages as stage_lines

    lines = [line.plain for line in stage_lines(cluster.view(), 1, 80)]
    assert lines[1].startswith("  2 █")
    assert "2 stages that are less busy" in lines[2]


def test_a_client_of_texts_is_told_by_its_tokens(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]]))
    cluster.feeds("writer", images_per_s=0.0, tokens_per_s=57.3, first_token_ms=182.0)
    cluster.feeds("other", images_per_s=0.0, tokens_per_s=2.5, first_token_ms=400.0)
    for device in ("pi-0", "pi-1", "pi-2"):
        cluster.online(device)
        cluster.metrics(device, tokens_per_s=5.98)
    lines = lines_of(cluster, 120, 40)
    rate = line_with(lines, "57.3 tokens/s  ")
    assert "to the first token 182 ms" in rate
    assert " 5.98 " in next(line for line in lines if line.lstrip().startswith("pi-1 "))
    assert not any("images/s" in line for line in lines)


def test_several_clients_are_summed_up_in_one_ledger(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]]))
    for number in range(5):
        cluster.feeds(f"client-{number}", images_per_s=10.0 * number)
    lines = lines_of(cluster, 100, 40)
    assert "client-4" in line_with(lines, "window 6, 6 in flight")
    assert "2 more clients, 10.0 images/s together" in line_with(lines, "more clients")
    assert f"submitted {5 * 834}" in line_with(lines, "ledger")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"shard": ShardState.LOADING}, "loading"),
        ({"shard": ShardState.FAILED, "error": "no room"}, "FAILED"),
        ({"state": DeviceState.STOPPED}, "stopped"),
        ({"state": DeviceState.OFFLINE}, "OFFLINE"),
    ],
)
def test_the_state_of_a_device_is_one_word(
    changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    cluster = scenes.running(tmp_path)
    cluster.online("pi-0", **changes)
    view = cluster.view()
    assert state(rows(view)[0], view)[0] == word
    if "error" in changes:
        assert "no room" in line_with(lines_of(cluster, 120), "pi-0   ")


def test_devices_without_a_status_or_never_heard_are_listed(tmp_path: Path) -> None:
    cluster = Cluster(plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]]))
    cluster.metrics("pi-1")
    cluster.online("pi-2")
    lines = lines_of(cluster)
    assert "unseen" in line_with(lines, "pi-0   ")
    assert "unseen" in line_with(lines, "pi-1   ")
    assert "ready" in line_with(lines, "pi-2   ")  # its first metrics may yet come
    cluster.clock.now += 6
    lines = lines_of(cluster)
    assert "silent 6s" in line_with(lines, "pi-1   ")


def test_texts_of_other_processes_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    for width in (80, 200):
        drawn = screen(scenes.hostile(tmp_path / str(width)).view(), ADDRESS, width, 30)
        text = "\n".join(line.plain for line in drawn)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert all(c.isprintable() or c == "\n" for c in text)
        styles = {str(span.style) for line in drawn for span in line.spans}
        assert not {style for style in styles if "link" in style}
    assert "[bold red]x[/]" in text
    assert "漢字" in text


def test_nothing_yet_says_what_to_do() -> None:
    lines = lines_of(scenes.nothing_yet())
    assert "no plan" in lines[0]
    assert "nobody feeds the pipeline" in line_with(lines, "nobody")
    assert "No pipeline is running" in line_with(lines, "bound ")
    assert "none since this was started" in line_with(lines, "events")


def test_help_and_explanation_fit_a_small_terminal(tmp_path: Path) -> None:
    assert len(HELP.splitlines()) <= 20
    assert max(map(len, HELP.splitlines())) <= 76
    view = scenes.running(tmp_path).view()
    lines = bound_text(find_bound(view), 60)
    assert max(line.cell_len for line in lines) <= 60
    assert lines[0].plain.startswith("Stage 1")
    assert any(line.plain.startswith("· ") for line in lines)


def test_an_event_of_any_time_has_a_line() -> None:
    cluster = scenes.nothing_yet()
    from contract import topics
    from contract.status import Event
    from tests.watch.cluster import CLUSTER, delivery

    event = Event(kind=EventKind.BATCH_DEAD, sender="c", time_unix_s=1e300, detail="x", count=3)
    cluster.state.take(delivery(topics.event_topic(CLUSTER, "c"), event.model_dump_json()))
    assert "--:--:-- c batch_dead ×3 x" in line_with(lines_of(cluster), "batch_dead")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "—"),
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (999_499, "999k"),
        (999_501, "1.00M"),
        (12_345_678, "12.3M"),
        (2_400_000_000, "2.40G"),
        (5e15, "5000T"),
        (1e300, ">999T"),
    ],
)
def test_amounts_fit_five_cells(count: float | None, text: str) -> None:
    assert amounts.short(count) == text
    assert len(text) <= 5


def test_bars_and_curves_are_as_long_as_asked() -> None:
    assert drawing.bar(0.5, 10).plain == "█████·····"
    assert drawing.bar(7.0, 4).plain == "████"
    assert drawing.bar(-1.0, 4).plain == "····"
    assert drawing.curve([0, 50, 100], 10) == "▁▄▇"
    assert drawing.curve([1, 2, 3], 2) == "▅▇"
    assert drawing.curve([], 5) == ""
    assert drawing.curve([0.0, 0.0], 5) == "▁▁"
    assert drawing.in_ascii("█·▶…—é") == "#.>~-?"
    assert drawing.cut("漢字漢字", 5) == "漢字…"
    assert drawing.cut("short", 5) == "short"
    assert Text(drawing.cut("x" * 100, 7)).cell_len == 7
