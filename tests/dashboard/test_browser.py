"""The page in headless Chromium: a pipeline that runs, one of fifty devices, none at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.dashboard.guard import Token
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.plan import Plan
from contract.status import EventKind
from tests.conftest import StartStage
from tests.dashboard.conftest import Serve
from tests.dashboard.made_up import Talking, event_of, plan_on
from tests.faults.proxy import Proxy
from tests.pipeline.fakes import make_batches, publish_plan
from tests.pipeline.test_process_faults import StageProcess
from tests.tiny import make_tiny_plan

DESKTOP, PHONE, SMALLEST = (1440, 900), (390, 844), (360, 640)
TIMEOUT_MS = 20_000
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("Chromium is missing; on Debian: sudo apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=[
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--disable-gpu",
                "--disable-quic",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        yield browser
        browser.close()


class Watched:
    """A page, and all that a person would see only in the developer's tools."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _request(self, request: Request) -> None:
        self.hosts.add(request.url.split("/")[2])


@pytest.fixture
def watched(chromium: Browser) -> Iterator[Watched]:
    """Whatever a test does with it: nothing on the console, and no host but the dashboard's."""
    context = chromium.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    # Content security policy violations are events of the page; some never reach the console.
    context.add_init_script(
        "window.violations = []; window.shift = 0;"
        "addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective));"
        "new PerformanceObserver(list => { for (const e of list.getEntries())"
        " if (!e.hadRecentInput) window.shift += e.value })"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    page = context.new_page()
    watched = Watched(page)
    yield watched
    assert watched.complaints == []
    assert len(watched.hosts) <= 1
    if page.url.startswith("http"):
        assert page.evaluate("window.violations") == []
    context.close()


def device(page: Page, name: str) -> Any:
    """Its box in the drawing."""
    return page.locator(f'[data-device="{name}"]')


def wide(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


@pytest.fixture
def devices(unique: str) -> tuple[str, ...]:
    return tuple(f"pi-{index}-{unique}" for index in range(3))


@pytest.fixture
def running(
    tmp_path: Path,
    connect: Connect,
    cluster: str,
    unique: str,
    devices: tuple[str, ...],
    start_stage: StartStage,
    shared_broker: EmbeddedBroker,
) -> Iterator[StageProcess]:
    """A pipeline that is fed until the end; its middle stage, a process that a test may kill."""
    plan: Plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    for name in (devices[0], devices[2]):
        start_stage(name, tmp_path)
    middle = StageProcess(devices[1], tmp_path, shared_broker.address, cluster)
    publish_plan(connect, plan, cluster)
    end = threading.Event()

    def feed() -> None:
        settings = ClientSettings(name=f"client-{unique}", cluster=cluster, ready_timeout_s=30)
        with Pipeline(settings, connect) as pipeline:
            pipeline.open()
            while not end.is_set():
                for _ in pipeline.run(make_batches(20)):
                    end.wait(0.02)

    thread = threading.Thread(target=feed)
    thread.start()
    yield middle
    if middle.process.poll() is not None:
        middle.start()
    end.set()
    thread.join(timeout=60)
    middle.kill()
    assert not thread.is_alive()


def test_a_running_pipeline_is_shown_and_a_killed_stage_cannot_be_missed(
    watched: Watched, serve: Serve, running: StageProcess, devices: tuple[str, ...]
) -> None:
    page = watched.page
    page.goto(serve().url)
    headline = page.locator(".headline")
    expect(headline).to_contain_text("All 3 stages ready, nothing lost")
    for name in devices:
        expect(device(page, name)).to_have_attribute("data-condition", "ready")
    expect(page.get_by_test_id("verdict")).to_contain_text("Nothing lost")
    delivered = page.locator(".tile", has_text="delivered").locator(".value")
    before = delivered.inner_text()
    expect(delivered).not_to_have_text(before)
    assert page.locator(".stage").count() == 3
    running.kill()
    expect(device(page, devices[1])).to_have_attribute("data-condition", "offline")
    expect(headline).to_have_class("headline bad")
    expect(headline).to_contain_text(
        f"Stage 1 has no device that is ready: {devices[1]} is offline"
    )
    expect(page.locator('[data-stage="1"] .tag')).to_have_text("no device")
    expect(page.get_by_test_id("events")).to_contain_text("device lost")
    running.start()
    expect(device(page, devices[1])).to_have_attribute("data-condition", "ready")
    expect(headline).to_contain_text("All 3 stages ready, nothing lost")
    assert page.evaluate("window.shift") < 0.1, "what is read must not jump"


def test_a_broker_that_goes_is_told_and_all_is_right_when_it_is_back(
    watched: Watched,
    serve: Serve,
    own_broker: EmbeddedBroker,
    cluster: str,
    tmp_path: Path,
) -> None:
    connect = Connector(own_broker.address)
    plan = plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]], cluster)
    talking = Talking(connect, cluster, plan, ["pi-0", "pi-1", "pi-2"])
    try:
        page = watched.page
        page.goto(serve(connect).url)
        headline = page.locator(".headline")
        expect(headline).to_have_class("headline good")
        own_broker.kill()
        expect(headline).to_contain_text("No connection to the broker")
        expect(page.locator("main")).to_have_class("stale")
        own_broker.start()
        expect(headline).to_have_class("headline good")
        expect(page.locator("main")).to_have_class("")
        assert page.locator("[data-row]").count() == 3
    finally:
        talking.close()


def test_a_connection_that_nobody_ended_is_made_anew(
    watched: Watched, serve: Serve, quick: None
) -> None:
    """As when a machine loses its power: no word comes, and none of an end."""
    page, (host, _, port) = watched.page, serve().url.removeprefix("http://").partition(":")
    proxy = Proxy(host, int(port))
    try:
        page.goto(f"http://127.0.0.1:{proxy.port}")
        headline = page.locator(".headline")
        expect(headline).to_contain_text("No plan is published")
        assert proxy.swallow(upward=False)
        expect(headline).to_contain_text("No connection to the dashboard for")
        expect(headline).to_contain_text("No plan is published", timeout=2 * TIMEOUT_MS)
    finally:
        proxy.close()


def test_a_dashboard_that_goes_is_told_too(watched: Watched, serve: Serve, quick: None) -> None:
    page, served = watched.page, serve()
    page.goto(served.url)
    expect(page.locator(".headline")).to_contain_text("No plan is published")
    served.server.stop()
    expect(page.locator(".headline")).to_contain_text("No connection to the dashboard for")
    # The browser itself writes down that it could not connect; nothing else may be there.
    watched.complaints = [c for c in watched.complaints if "ERR_" not in c]


@pytest.fixture
def fifty(connect: Connect, cluster: str, tmp_path: Path) -> Iterator[Talking]:
    names = [f"raspberry-pi-{index:02}" for index in range(50)]
    plan = plan_on(tmp_path, [names[:24], names[24:40], names[40:47]], cluster)
    talking = Talking(connect, cluster, plan, names, interval_s=1.0)
    yield talking
    talking.close()


def test_fifty_devices_fit_every_width(watched: Watched, serve: Serve, fifty: Talking) -> None:
    page = watched.page
    page.goto(serve().url)
    expect(page.locator(".headline")).to_contain_text("All 3 stages ready, nothing lost")
    expect(page.locator("[data-row]")).to_have_count(50)
    expect(page.locator("[data-device]")).to_have_count(50)
    for width, height in (DESKTOP, (1024, 768), (820, 1180), PHONE, SMALLEST, (2560, 1440)):
        page.set_viewport_size({"width": width, "height": height})
        assert wide(page) == 0, f"at {width} pixels"
    fifty.lose("raspberry-pi-33")
    expect(page.locator(".headline")).to_contain_text("raspberry-pi-33 is offline; every stage has")
    expect(page.locator('[data-row="raspberry-pi-33"]')).to_have_class("gone")


def test_it_can_be_used_without_a_mouse(watched: Watched, serve: Serve, fifty: Talking) -> None:
    page = watched.page
    page.goto(serve().url)
    expect(page.locator("[data-row]")).to_have_count(50)
    first = page.locator("[data-row]").first
    assert first.get_attribute("data-row") == "raspberry-pi-00"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("busy"):
            break
    page.keyboard.press("Enter")
    expect(page.locator('th[aria-sort="ascending"]')).to_contain_text("busy")
    expect(first).to_have_attribute("data-row", "raspberry-pi-14")
    page.keyboard.press("Enter")
    expect(page.locator('th[aria-sort="descending"]')).to_contain_text("busy")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_follows_the_system_and_can_be_chosen(
    watched: Watched, serve: Serve, quick: None
) -> None:
    page, url = watched.page, serve().url

    def is_dark() -> bool:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 384

    page.emulate_media(color_scheme="dark")
    page.goto(url)
    expect(page.locator(".headline")).to_contain_text("No plan")
    assert is_dark()
    page.get_by_label("light").check()
    assert not is_dark()
    page.reload()
    expect(page.locator(".headline")).to_contain_text("No plan")
    assert not is_dark(), "it is remembered"
    page.get_by_label("dark").check()
    page.emulate_media(color_scheme="light")
    assert is_dark()
    page.get_by_label("auto").check()
    assert not is_dark()


def test_what_devices_say_is_text_and_absurd_figures_break_nothing(
    watched: Watched, serve: Serve, connect: Connect, cluster: str, tmp_path: Path
) -> None:
    plan = plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]], cluster)
    talking = Talking(connect, cluster, plan, ["pi-0", "pi-1", "pi-2"])
    huge = {"rss_bytes": 2**62, "utilisation": 1e15, "compute_ms_mean": -1e15}
    talking.changes["pi-1"] = huge | {"throttled": (HOSTILE,), "bytes_in_per_s": 1e15}
    event = event_of(HOSTILE, kind=EventKind.BATCH_DEAD)
    try:
        page = watched.page
        page.goto(serve().url)
        expect(device(page, "pi-1")).to_be_visible()
        talking.event(event.model_copy(update={"time_unix_s": 1e300, "count": 2**62}))
        expect(page.get_by_test_id("events")).to_contain_text(HOSTILE)
        expect(device(page, "pi-1")).to_contain_text(HOSTILE)
        assert page.locator("img[src=x]").count() == 0
        assert wide(page) == 0
        page.set_viewport_size({"width": SMALLEST[0], "height": SMALLEST[1]})
        assert wide(page) == 0
    finally:
        talking.close()


def test_with_a_token_one_logs_in(watched: Watched, serve: Serve, quick: None) -> None:
    page = watched.page
    served = serve(token=Token("the-token-of-this-test"))
    page.goto(served.url)
    page.get_by_label("Token").fill("a wrong one")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    page.get_by_label("Token").fill("the-token-of-this-test")
    page.keyboard.press("Enter")
    expect(page.locator(".headline")).to_contain_text("No plan is published")
