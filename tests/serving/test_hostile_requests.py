"""What one client sends costs the others nothing: neither their texts, nor time, nor memory."""

import asyncio
import json
import socket
import threading
import time
import tracemalloc

import httpx2
import pytest

from client.serving.answers import Answer
from client.serving.errors import ApiError
from client.serving.reading import body_limit
from client.serving.requests import ChatRequest, CompletionRequest, Wanted, parse_request
from client.serving.writing import Stream
from client.tokenizer import TextTokenizer
from tests.conftest import eventually
from tests.generation.fake_decoder import make_text_plan
from tests.serving.conftest import Served
from tests.serving.test_openai_client import CHAT, expected, slow


def post(served: Served, body: object, path: str = "completions") -> httpx2.Response:
    """Send what no client of OpenAI's would."""
    return httpx2.post(
        f"{served.url}/v1/{path}",
        content=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        timeout=60,
    )


@pytest.mark.parametrize(
    "field",
    [
        '"top_k": 100000000000000000',
        '"top_k": 1' + 400 * "0",
        '"max_tokens": 1' + 4299 * "0",
        '"temperature": NaN',
        '"repetition_penalty": NaN',
        '"seed": 1e400',
    ],
    ids=lambda field: field[:22],
)
def test_numbers_that_nobody_means_end_no_other_s_text(served: Served, field: str) -> None:
    slow(served)
    events = served.client().completions.create(
        model="text", prompt="once", max_tokens=60, temperature=0, stream=True
    )
    pieces = [next(iter(events)).choices[0].text]
    refused = post(served, f'{{"model": "text", "prompt": "x", {field}}}'.encode())
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field.partition(":")[0].strip('"')
    pieces += [event.choices[0].text for event in events]
    assert "".join(pieces) == expected("once", 60)


MANY = 200_000
CONTENT = '{"model": "text", "messages": [{"role": "user", "content": %s}]}'


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (CompletionRequest, '{"model": "", "prompt": "", "stop": %s}', "stop"),
        (CompletionRequest, '{"model": "", "prompt": ["", %s]}', "prompt"),
        (CompletionRequest, '{"model": "", "prompt": %s}', None),
        (ChatRequest, '{"model": "", "messages": %s}', "messages.0"),
        (ChatRequest, CONTENT, "messages.0.content"),
    ],
    ids=["stop", "nested prompt", "prompt", "messages", "parts"],
)
def test_a_list_of_faults_is_left_at_the_first(
    kind: type[Wanted], body: str, param: str | None
) -> None:
    """An error for each of them was 500 times the memory of the body, and a second a megabyte."""
    text = (body % ("[" + ",".join(["1"] * MANY) + "]")).encode()
    tracemalloc.start()
    try:
        if param is None:
            parse_request(kind, text)
        else:
            with pytest.raises(ApiError) as refused:
                parse_request(kind, text)
            assert refused.value.param is not None
            assert refused.value.param.startswith(param)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 20 * len(text) + 1_000_000


@pytest.mark.parametrize("where", ["request", "message"])
def test_fields_without_number_are_refused_at_once(where: str) -> None:
    many = ", ".join(f'"f{n}": 1' for n in range(1000))
    body = f'{{"model": "", "messages": [], {many}}}'
    if where == "message":
        body = f'{{"model": "", "messages": [{{{many}}}]}}'
    with pytest.raises(ApiError, match="more than 64 fields"):
        parse_request(ChatRequest, body.encode())


def test_the_limits_of_lists_are_told() -> None:
    with pytest.raises(ApiError, match="at most 4 items") as refused:
        parse_request(
            CompletionRequest, b'{"model": "", "prompt": "", "stop": ["a","b","c","d","e"]}'
        )
    assert refused.value.param == "stop"
    long = json.dumps({"model": "", "prompt": "", "stop": "x" * 1001}).encode()
    with pytest.raises(ApiError, match="at most 1000 characters") as refused:
        parse_request(CompletionRequest, long)
    assert refused.value.param == "stop"


def test_a_body_is_as_large_as_the_model_can_use() -> None:
    devices = [["pi-0"], ["pi-1"]]
    limits = [
        body_limit(make_text_plan(devices, "texts", context_tokens=tokens, chunk_tokens=4096))
        for tokens in (32, 512, 1_000_000)
    ]
    assert limits == [64_000, 524_288, 8_000_000]


def test_a_body_that_no_prompt_needs_is_not_read(served: Served) -> None:
    refused = post(served, {"model": "text", "prompt": "x" * 270_000})
    assert refused.status_code == 413
    assert "262,144 bytes" in refused.json()["error"]["message"]


def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_found(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 256 * len("<|end|>")
    monkeypatch.setattr("client.tokenizer.DEAR_CHARACTERS", 0)
    found: list[int] = []
    ready = served.engine.ready()
    encode = ready.tokenizer._tokenizer.encode

    class Watched:
        def encode(self, text: str, **more: bool) -> object:
            found.append(len(text))
            return encode(text, **more)

    monkeypatch.setattr(ready.tokenizer, "_tokenizer", Watched())
    chat = {"model": "text", "messages": [{"role": "user", "content": "x" * longest}]}
    for path, body in (
        ("completions", {"model": "text", "prompt": "x" * (longest + 1)}),
        ("chat/completions", chat),
    ):
        refused = post(served, body, path)
        assert (refused.status_code, found) == (400, [])
        assert refused.json()["error"]["code"] == "context_length_exceeded"
    refused = post(served, {"model": "text", "prompt": "x" * longest})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert found == [longest]


def test_few_texts_are_encoded_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []
    most: list[int] = []
    go_on = threading.Event()
    encode = TextTokenizer.encode

    def slowly(self: TextTokenizer, text: str, at_most: int | None = None) -> list[int]:
        at_work.append(1)
        most.append(len(at_work))
        assert go_on.wait(20)
        at_work.pop()
        return encode(self, text, at_most)

    monkeypatch.setattr(TextTokenizer, "encode", slowly)
    body = {"model": "text", "prompt": "x", "max_tokens": 1}
    threads = [threading.Thread(target=post, args=(served, body)) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(at_work) == 2, "two are at it")
    time.sleep(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    assert len(most) == 6


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_few_bodies_are_read_at_once_and_others_are_answered_meanwhile(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    at_work: list[int] = []
    most: list[int] = []
    go_on = threading.Event()

    def slowly(kind: type[Wanted], body: bytes) -> Wanted:
        at_work.append(1)
        most.append(len(at_work))
        assert go_on.wait(20)
        at_work.pop()
        return parse_request(kind, body)

    monkeypatch.setattr("client.serving.app.parse_request", slowly)
    body = {"model": "text", "max_tokens": 1}
    body |= {"prompt": "x"} if path == "completions" else {"messages": CHAT}
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(post(served, body, path).status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(at_work) == 2, "two are at it")
        assert httpx2.get(f"{served.url}/health", timeout=10).status_code == 200
        time.sleep(0.2)
    finally:
        go_on.set()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    assert codes == 6 * [200]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", '"prompt": "a\\ud800"', "prompt"),
        ("completions", '"prompt": ["a", "\\udfff"]', "prompt"),
        ("completions", '"prompt": "a", "stop": ["\\ud800"]', "stop"),
        ("completions", '"prompt": "a", "\\ud800": 1', None),
        ("chat/completions", '"messages": [{"role": "user", "content": "\\ud800"}]', "messages.0"),
        ("completions", '"prompt": "a", "model": "\\ud800"', "model"),
    ],
)
def test_half_a_surrogate_pair_is_refused_where_it_stands(
    served: Served, path: str, fields: str, param: str | None
) -> None:
    refused = post(served, f'{{"model": "text", {fields}}}'.encode(), path)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"].startswith(param)


def test_a_fault_of_ours_is_told_in_the_form_of_the_others_and_logged_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("client.serving.app.make_request", fails)
    failed = post(served, {"model": "text", "prompt": "x"})
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "a fault of ours" not in failed.text
    eventually(lambda: any(r.exc_info for r in caplog.records), "it is logged after the answer")
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_stream_that_nobody_begins_to_read_is_cancelled() -> None:
    cancelled: list[bool] = []

    class Asked:
        def __len__(self) -> int:
            return 1

        def cancel(self) -> None:
            cancelled.append(True)

    async def leave() -> None:
        async def send(_message: object) -> None:
            raise ConnectionResetError

        async def receive() -> dict[str, str]:
            await asyncio.sleep(20)
            return {"type": "http.disconnect"}

        stream = Stream(Asked(), Answer("text", "id", 0, "text"), 1)  # type: ignore[arg-type]
        await stream({"type": "http"}, receive, send)  # type: ignore[arg-type]

    with pytest.raises(ConnectionResetError):
        asyncio.run(leave())
    assert cancelled


def test_a_body_that_never_ends_loses_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are counted: one that sends a byte now and then would hold its place for ever."""
    monkeypatch.setattr("client.serving.reading.BODY_TIMEOUT_S", 0.5)
    address = httpx2.URL(served.url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.host}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port), timeout=15) as connection:
        connection.sendall(head.encode() + b'{"model":')
        answer = b""
        while piece := connection.recv(65536):  # until it is closed
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b"the whole body within 0.5 s, got 9 bytes" in answer
    assert post(served, {"model": "text", "prompt": "x", "max_tokens": 1}).status_code == 200
