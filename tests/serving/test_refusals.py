"""What is refused is named: status, code and field as docs/generate.md says."""

import re
from pathlib import Path

import httpx2
import openai
import pytest

from tests.generation.conftest import Site
from tests.serving.conftest import Serve, Served
from tests.serving.test_openai_client import CHAT

REFUSED: list[tuple[dict[str, object], str]] = [
    ({"logprobs": True}, "logprobs"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"extra_body": {"surprise": 1}}, "surprise"),
    ({"temperature": 3}, "temperature"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": 5}, "stop"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages.0.tool_calls",
    ),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
]


def test_what_is_not_supported_is_refused_by_name(served: Served) -> None:
    for fields, param in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            served.client().chat.completions.create(
                **({"model": "text", "messages": CHAT} | fields)  # type: ignore[call-overload]
            )
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
        assert refused.value.code in ("invalid_value", "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", 0), ("logprobs", 5), ("store", 0), ("presence_penalty", False)],
)
def test_a_number_is_no_flag_and_a_flag_no_number(
    served: Served, field: str, value: object
) -> None:
    """Of a text's continuation 0 asks for the chosen tokens' logprobs, and false for none."""
    body = {"model": "text", "prompt": "x", "max_tokens": 1}
    url = f"{served.url}/v1/completions"
    neutral = 0.0 if field == "presence_penalty" else False
    assert httpx2.post(url, json=body | {field: neutral}).status_code == 200
    refused = httpx2.post(url, json=body | {field: value})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": 9 * ["x"], "n": 2}, "9 prompts"),
        ({"prompt": [-1]}, "token -1"),
        ({"prompt": [257]}, "token 257: this model knows 0 to 256"),
        ({"messages": [{"role": "assistant", "content": "no answers"}]}, "the template says no"),
        ({"prompt": "x", "stop": ""}, "`stop`"),
    ],
)
def test_a_value_that_is_refused_is_named(
    serve: Serve, fields: dict[str, object], said: str
) -> None:
    refuses = "{{ raise_exception('the template says no') }}"
    served = serve(Site([["pi-0"], ["pi-1"]]), template=refuses).wait()
    path = "completions" if "prompt" in fields else "chat/completions"
    refused = httpx2.post(f"{served.url}/v1/{path}", json={"model": "text"} | fields)
    assert refused.status_code == 400
    error = refused.json()["error"]
    param = "stop" if "stop" in fields else "prompt" if "prompt" in fields else "messages"
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert said in error["message"]


@pytest.mark.parametrize("kind", ["Application/JSON", "application/json ; charset=utf-8"])
def test_a_content_type_is_known_however_it_is_written(served: Served, kind: str) -> None:
    body = b'{"model": "text", "prompt": "x", "max_tokens": 1}'
    url = f"{served.url}/v1/completions"
    done = httpx2.post(url, content=body, headers={"content-type": kind})
    assert done.status_code == 200


def test_the_table_of_refusals_is_what_is_answered(served: Served) -> None:
    page = (Path(__file__).parent.parent.parent / "docs/generate.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]*)\|", page, re.MULTILINE)
    told = {
        (int(status), code)
        for statuses, codes in rows
        for status in statuses.split(",")
        for code in re.findall(r"`(\w+)`", codes) or [None]
    }
    url = f"{served.url}/v1/completions"
    json = {"content-type": "application/json"}
    answers = (
        httpx2.get(f"{served.url}/v1/embeddings"),
        httpx2.get(f"{served.url}/v1/models/other"),
        httpx2.get(url),
        httpx2.get(url, headers={"host": "evil.example"}),
        httpx2.post(url, content=b"[]", headers=json),
        httpx2.post(url, content=b"{}"),
        httpx2.post(url, content=b" " * 300_000, headers=json),
        httpx2.post(url, json={"model": "text", "prompt": ""}),
        httpx2.post(url, json={"model": "text", "prompt": "x" * 300}),
        httpx2.post(url, json={"model": "text", "prompt": "x", "tools": [1]}),
    )
    assert [a.headers["allow"] for a in answers if a.status_code == 405] == ["POST"]
    answered = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers}
    assert {status for status, _ in answered} == {400, 404, 405, 413, 415, 421}
    assert answered <= told
