"""The documents and events that clients read, apart from any server."""

import json

import pytest

from client.serving.answers import Answer, Kind


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_an_event_is_one_line_whatever_the_text_holds(kind: Kind) -> None:
    """Clients that split by lines as Python does take more than \\n for an end of one."""
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng\U0001f43a"
    line, *rest = Answer(kind, "id", 0, "text").piece(0, text).splitlines()
    assert rest == [""]
    [choice] = json.loads(line.removeprefix("data: "))["choices"]
    assert (choice["text"] if kind == "text" else choice["delta"]["content"]) == text
