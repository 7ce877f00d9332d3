"""A server that counts its connections closes those that ask nothing."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

import client.http_server
from client.dashboard.serve import Bind, listen
from client.http_server import make_server
from tests.conftest import eventually

PLACES = 8
SLOW_S = 1.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if Request(scope).url.path == "/slow":
        await asyncio.sleep(SLOW_S)
    await PlainTextResponse("here")(scope, receive, send)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server with few places, which waits for a request's head for 0.4 s."""
    monkeypatch.setattr(client.http_server, "REQUEST_HEAD_S", 0.4)
    with listen(Bind("127.0.0.1", 0)) as listener:
        server = make_server(app, PLACES, grace_s=2)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join(timeout=15)
        assert not thread.is_alive()


def ask(connection: socket.socket, path: str = "/") -> str:
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: here\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"here") and (more := connection.recv(4096)):
        answer += more
    return answer.decode()


def has_ended(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_who_asks_nothing_keeps_nobody_out(address: tuple[str, int]) -> None:
    silent = [socket.create_connection(address) for _ in range(PLACES + 2)]

    def is_answered() -> bool:
        with socket.create_connection(address, timeout=10) as connection:
            return ask(connection).startswith("HTTP/1.1 200 ")

    eventually(is_answered, "there is room again")
    assert all(map(has_ended, silent))
    for connection in silent:
        connection.close()


def test_single_bytes_win_no_time(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: he")
        assert has_ended(connection)


def test_a_second_request_has_as_long_as_the_first(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        assert ask(connection).startswith("HTTP/1.1 200 ")
        assert ask(connection).startswith("HTTP/1.1 200 ")
        connection.sendall(b"GET")
        assert has_ended(connection)


def test_an_answer_that_takes_longer_is_not_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        assert ask(connection, "/slow").endswith("here")
