"""The server: what it answers, whom it turns away, and that slow browsers cost nothing."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.dashboard import hub as hub_module
from client.dashboard.app import make_app
from client.dashboard.guard import (
    COOKIE,
    HEADERS,
    Token,
    is_trusted_host,
    read_or_make_token,
)
from client.dashboard.hub import Hub, Mailbox, TooManyBrowsersError
from client.watch.view import BrokerView, ClusterView
from contract.errors import BrokerError, NameTakenError, SettingsError
from tests.conftest import eventually
from tests.dashboard.conftest import Serve, Served
from tests.dashboard.made_up import Talking, Told, event_of, plan_on

TOKEN = "a-token-of-the-tests"
EMPTY = ClusterView("home", True, 1.0, None, (), (), (), BrokerView())
SITE = "http://127.0.0.1:8080"


def client(**options: Any) -> TestClient:
    return TestClient(
        make_app(Hub(lambda: EMPTY), **options), base_url=SITE, follow_redirects=False
    )


@contextmanager
def stream(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The views that a browser gets."""
    with (
        httpx2.Client(timeout=15, trust_env=False) as http,
        http.stream("GET", f"{url}/api/stream") as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        yield (json.loads(line[6:]) for line in lines if line.startswith("data: "))


# What is answered


def test_every_answer_has_the_headers_of_the_guard() -> None:
    with client() as http:
        for path in ("/", "/login", "/static/theme.js", "/api/view", "/healthz", "/nowhere"):
            answer = http.get(path)
            assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, path
            assert answer.headers["cache-control"] in ("no-store", "no-cache")
    assert "default-src 'self'" in HEADERS["content-security-policy"]
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_the_page_and_its_files_are_served_and_nothing_else_is() -> None:
    with client() as http:
        page = http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert '<div id="app">' in page.text
        assert http.get("/static/icon.svg").headers["content-type"].startswith("image/svg")
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/docs"):
            assert http.get(path).status_code == 404, path
        assert http.post("/").status_code == 405
        assert http.put("/api/view").status_code == 405


def test_one_view_has_its_history(serve: Serve, quick: None) -> None:
    with client() as http:
        view = http.get("/api/view").json()
    assert view["cluster"] == "home"
    assert view["history"]["time_unix_s"]
    assert view["advice"] is None


def test_what_explains_throughput_is_shown() -> None:
    hub = Hub(lambda: EMPTY, explain=lambda view: [f"nothing bounds {view.cluster}"])
    assert json.loads(hub.full())["advice"] == ["nothing bounds home"]


# Whom it turns away


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("127.0.0.1:8080", True),
        ("127.0.0.1", True),
        ("[::1]:8080", True),
        ("192.168.1.20:80", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("hub.local:8080", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[::1", False),
        ("[evil.example]:80", False),
    ],
)
def test_only_addresses_and_known_names_are_answered(host: str, trusted: bool) -> None:
    """DNS rebinding: a page elsewhere whose name points here."""
    assert is_trusted_host(host, frozenset({"hub.local"})) is trusted
    with client(allowed_hosts=frozenset({"hub.local"})) as http:
        status = http.get("/api/view", headers={"host": host}).status_code
    assert status == (200 if trusted else 421)


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
def test_pages_of_other_sites_cannot_read_the_api(site: str, status: int) -> None:
    with client() as http:
        answer = http.get("/api/view", headers={"sec-fetch-site": site})
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers


def test_without_the_token_only_the_log_in_page_is_there() -> None:
    with client(token=Token(TOKEN)) as http:
        assert http.get("/api/view").status_code == 401
        assert http.get("/api/stream").status_code == 401
        page = http.get("/")
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert http.get("/login").status_code == 200
        assert http.get("/healthz").status_code == 200
        for wrong in ("", "a-token", TOKEN + "x", "ü"):
            answer = http.post("/login", content=f"token={wrong}")
            assert answer.headers["location"] == "/login?wrong"
            assert "set-cookie" not in answer.headers
            assert http.get("/api/view", headers={"cookie": f"{COOKIE}={TOKEN}"}).status_code == 401
        assert http.post("/login", content=b"token=" + b"x" * 10_000).status_code == 413
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert http.get("/api/view", headers=bearer).status_code == 200
        wrong_bearer = {"authorization": f"Bearer {TOKEN}x"}
        assert http.get("/api/view", headers=wrong_bearer).status_code == 401


def test_with_the_token_a_browser_gets_a_cookie_that_is_not_the_token() -> None:
    with client(token=Token(TOKEN)) as http:
        answer = http.post("/login", content=f"token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert TOKEN not in cookie
        assert http.get("/api/view").status_code == 200
        assert http.get("/").status_code == 200
    assert TOKEN not in repr(Token(TOKEN))


@pytest.mark.parametrize("others", ['g={"a":1}', "x=a b", "a[b]=1", "flag", 'q="open'])
def test_cookies_of_other_services_on_this_host_lock_nobody_out(others: str) -> None:
    with client(token=Token(TOKEN)) as http:
        cookie = f"{others}; {COOKIE}={Token(TOKEN).cookie}"
        assert http.get("/api/view", headers={"cookie": cookie}).status_code == 200
        assert http.get("/api/view", headers={"cookie": others}).status_code == 401


def test_a_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    made, is_new = read_or_make_token(file)
    assert is_new
    assert file.stat().st_mode & 0o777 == 0o600
    again, is_new = read_or_make_token(file)
    assert not is_new
    assert made.is_it(file.read_text().strip())
    assert again.cookie == made.cookie


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40, b"x" * 5000])
def test_a_token_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="--token-file"):
        read_or_make_token(file)
    with pytest.raises(SettingsError, match="cannot use it"):
        read_or_make_token(tmp_path / "no" / "token")


# Streams


def test_a_stream_begins_with_history_and_goes_on_without(
    serve: Serve, connect: Connect, cluster: str, tmp_path: Path, quick: None
) -> None:
    plan = plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]], cluster)
    served = serve()
    talking = Talking(connect, cluster, plan, ["pi-0", "pi-1", "pi-2"])
    try:
        with stream(served.url) as views:
            first, second = next(views), next(views)
            assert first["history"]
            assert second["history"] is None
            assert second["time_unix_s"] > first["time_unix_s"]
            for view in views:
                if view["headline"]["level"] == "good" and view["ledger"]["delivered"] > 1:
                    break
            talking.lose("pi-1")
            for view in views:
                if view["headline"]["level"] == "bad":
                    break
            assert "pi-1 is offline" in view["headline"]["text"]
    finally:
        talking.close()


def test_a_broker_that_is_started_again_is_told_and_leaves_no_ghost(
    serve: Serve, own_broker: EmbeddedBroker, cluster: str, tmp_path: Path, quick: None
) -> None:
    connect = Connector(own_broker.address)
    plan = plan_on(tmp_path, [["pi-0"], ["pi-1"], ["pi-2"]], cluster)
    served = serve(connect)
    talking = Talking(connect, cluster, plan, ["pi-0", "pi-1", "pi-2"])
    try:
        with stream(served.url) as views:
            next(v for v in views if v["headline"]["level"] == "good")
            own_broker.kill()
            away = next(v for v in views if not v["is_connected"])
            assert away["headline"]["level"] == "bad"
            assert away["sample"]["images_per_s"] is None
            assert len(away["devices"]) == 3, "what was known stays"
            own_broker.start()
            back = next(v for v in views if v["is_connected"] and v["sample"]["images_per_s"])
            assert [d["device"] for d in back["devices"]] == ["pi-0", "pi-1", "pi-2"]
            assert back["headline"]["level"] == "good"
    finally:
        talking.close()


def test_there_are_so_many_places_and_one_that_is_left_is_free_again(
    serve: Serve, quick: None
) -> None:
    served = serve(max_browsers=2)
    with stream(served.url) as one, stream(served.url) as two:
        next(one), next(two)
        third = httpx2.get(f"{served.url}/api/stream", trust_env=False)
        assert third.status_code == 503
        assert "retry-after" in third.headers
    eventually(lambda: not served.hub.is_full, "the places are free")
    with stream(served.url) as again:
        assert next(again)["history"]


def test_the_end_lets_every_browser_go(serve: Serve, quick: None) -> None:
    served = serve()
    with stream(served.url) as views:
        next(views)
        served.server.stop()
        assert list(views) is not None  # it ends: nothing waits for ever


def test_a_browser_that_does_not_keep_up_gets_the_newest_only() -> None:
    """And one that never fetches anything loses its place."""

    async def run() -> None:
        told = Told()
        hub = Hub(told.state.view, max_browsers=2)
        with hub.subscribe() as slow, hub.subscribe() as stalled:
            with pytest.raises(TooManyBrowsersError), hub.subscribe():
                pass
            for second in range(10):
                told.event(event_of(f"event {second}"))
                hub.tick()
            newest = json.loads(await slow.get() or "")
            assert newest["events"][-1]["detail"] == "event 9"
            assert slow.missed == 9
            for _ in range(hub_module.STALLED_AFTER):
                hub.tick()
                await slow.get()
            assert await stalled.get() is None
            assert not hub.is_full

    asyncio.run(run())


def test_the_end_of_a_mailbox_is_the_end() -> None:
    async def run() -> None:
        mailbox = Mailbox()
        mailbox.put("x")
        mailbox.end()
        assert await mailbox.get() is None

    asyncio.run(run())


def test_a_refusal_of_the_broker_ends_the_server(serve: Serve, quick: None) -> None:
    """Not at once: the observer hears of it later, from the broker."""
    served = serve()
    with stream(served.url) as views:
        next(views)

        def refused() -> ClusterView:
            raise NameTakenError("another process uses this name")

        served.hub._look = refused
        list(views)  # it ends
    eventually(lambda: served.failures, "the server has ended")
    assert isinstance(served.failures[0], BrokerError)


def test_health_is_that_it_looks_not_that_there_is_a_broker() -> None:
    now = [0.0]
    hub = Hub(lambda: EMPTY, clock=lambda: now[0])
    with TestClient(make_app(hub), base_url=SITE) as http:
        hub.tick()
        assert http.get("/healthz").status_code == 200
        now[0] += 6
        assert http.get("/healthz").status_code == 503


def test_served_is_what_the_fixture_says(serve: Serve) -> None:
    served: Served = serve()
    assert httpx2.get(f"{served.url}/healthz", trust_env=False).json() == {"ok": True}
