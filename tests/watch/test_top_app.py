"""`shardline top` in textual's own test terminal: drawn at its size, and obeying its keys."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot

from client.watch.view import ClusterView
from contract.errors import NotAuthorisedError
from shardline.top.app import TopApp
from tests.watch import scenes
from tests.watch.cluster import Cluster

Drive = Callable[[TopApp, Pilot[None]], Awaitable[None]]


def screen_text(app: App[None]) -> str:
    """What stands on the terminal, line by line."""
    width, height = app.size
    strips = app.screen._compositor.render_strips()
    lines = [strip.text[:width].rstrip() for strip in strips]
    assert len(lines) == height
    return "\n".join(lines)


def colours(app: App[None]) -> set[str]:
    """Every colour on the terminal that is not its own default."""
    found = set()
    for strip in app.screen._compositor.render_strips():
        for segment in app_filtered(app, strip):
            style = segment.style
            for colour in (style.color, style.bgcolor) if style is not None else ():
                if colour is not None and not colour.is_default:
                    found.add(colour.name)
    return found


def app_filtered(app: App[None], strip):  # type: ignore[no-untyped-def]
    from textual.color import Color

    for line_filter in app._filters:
        strip = strip.apply_filter(line_filter, Color.parse("ansi_default"))
    return strip


def drive(
    cluster: Cluster | Callable[[], ClusterView],
    steps: Drive,
    size: tuple[int, int] = (80, 24),
) -> TopApp:
    watch = cluster.view if isinstance(cluster, Cluster) else cluster
    app = TopApp(watch, "127.0.0.1:1883")

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())
    return app


@pytest.mark.parametrize("size", [(80, 24), (140, 45), (60, 16)])
def test_the_screen_is_drawn_at_its_size(size: tuple[int, int], tmp_path: Path) -> None:
    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        text = screen_text(app)
        for words in ("shardline top", "images/s", "pi-1", "q quit   b what bounds it"):
            assert words in text, text
        assert text.splitlines()[-1].startswith(" q quit")

    drive(scenes.running(tmp_path), steps, size)


def test_keys_explain_help_page_sort_and_quit(tmp_path: Path) -> None:
    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await pilot.pause()
        text = screen_text(app)
        assert "what bounds throughput now" in text
        assert "The window is too small: 6 batches in flight for 50" in text
        await pilot.press("escape")
        await pilot.pause()
        assert "what bounds throughput now" not in screen_text(app)
        await pilot.press("question_mark")
        await pilot.pause()
        text = screen_text(app)
        assert "lost must be 0" in text
        assert "silent 12s: online" in text
        await pilot.press("question_mark")
        await pilot.pause()
        assert "page 1 of" in screen_text(app)
        await pilot.press("d")
        await pilot.pause()
        assert "page 2 of" in screen_text(app)
        await pilot.press("s")
        await pilot.pause()
        assert "by busy, page 1 of" in screen_text(app)
        assert app.is_running
        await pilot.press("b")
        await pilot.press("q")  # also above a text
        await pilot.pause()
        assert not app.is_running

    app = drive(scenes.fifty(tmp_path), steps)
    assert app.failure is None


def test_what_is_explained_follows_what_happens(tmp_path: Path) -> None:
    cluster = scenes.running(tmp_path)

    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("b")
        await pilot.pause()
        assert "Stage 1" in screen_text(app)
        cluster.state.set_connected(False)
        app.look()
        await pilot.pause()
        assert "No connection to the broker" in screen_text(app)
        await pilot.resize_terminal(50, 20)
        await pilot.pause()
        assert "No connection to the broker" in screen_text(app)

    drive(cluster, steps)


def test_it_looks_again_every_second(tmp_path: Path) -> None:
    cluster = scenes.running(tmp_path)
    looked = 0

    def watch() -> ClusterView:
        nonlocal looked
        looked += 1
        return cluster.view()

    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        cluster.state.set_connected(False)
        cluster.clock.now += 12
        await pilot.pause(1.3)
        assert looked >= 2
        assert "no connection for 12 s: shown is what was last heard" in screen_text(app)

    drive(watch, steps)


def test_the_broker_goes_and_comes_back(tmp_path: Path) -> None:
    cluster = scenes.broker_gone(tmp_path)

    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        assert "no connection for 12 s" in screen_text(app)
        logging.getLogger("broker.connection").warning("cannot reach the broker at [bold]x[/]")
        app.draw()
        await pilot.pause()
        assert "(cannot reach the broker at [bold]x[/])"[:20] in screen_text(app)
        cluster.state.set_connected(True)
        for name in ("pi-0", "pi-1", "pi-2", "pi-3"):
            cluster.metrics(name)
        app.look()
        await pilot.pause()
        text = screen_text(app)
        assert "no connection" not in text
        assert "ready" in text

    handlers = list(logging.getLogger().handlers)
    drive(cluster, steps)
    assert logging.getLogger().handlers == handlers


def test_a_refusal_of_the_broker_ends_it_with_the_reason() -> None:
    def watch() -> ClusterView:
        raise NotAuthorisedError("not for you")

    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        assert not app.is_running

    app = drive(watch, steps)
    assert isinstance(app.failure, NotAuthorisedError)


def test_colours_are_used_and_left_out_when_unwanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def coloured(app: TopApp, pilot: Pilot[None]) -> None:
        assert len(colours(app)) > 2

    async def grey(app: TopApp, pilot: Pilot[None]) -> None:
        assert colours(app) == set()
        await pilot.press("b")
        await pilot.pause()
        assert "what bounds throughput now" in screen_text(app)

    cluster = scenes.a_device_lost(tmp_path)
    drive(cluster, coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    drive(cluster, grey)


def test_hostile_texts_are_only_text(tmp_path: Path) -> None:
    async def steps(app: TopApp, pilot: Pilot[None]) -> None:
        text = screen_text(app)
        assert "[bold red]x[/]" in text
        assert "\x1b" not in text
        await pilot.press("b")
        await pilot.pause()
        assert "\x1b" not in screen_text(app)

    drive(scenes.hostile(tmp_path), steps, (200, 30))
