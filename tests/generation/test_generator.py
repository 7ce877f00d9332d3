"""What one request meets with ends that request, and nobody else's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.generation.generator import Generator
from client.generation.job import FinishReason, Piece
from client.generation.pipeline import TokenPipeline
from client.generation.request import Request
from client.tokenizer import TextTokenizer
from contract.decoder import Sampling
from tests.generation.conftest import Site, request
from tests.generation.fake_decoder import make_tokenizer, whole_text


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    make_tokenizer(tmp_path)
    return TextTokenizer(tmp_path)


@pytest.fixture
def pipeline(site: Site) -> Iterator[TokenPipeline]:
    with site.pipeline() as pipeline:
        yield pipeline


def run(generator: Generator, requests: list[Request]) -> list[list[Piece]]:
    """The pieces of each request's text."""
    told: list[list[Piece]] = [[] for _ in requests]
    for asked, pieces in zip(requests, told, strict=True):
        generator.submit(asked, pieces.append)
    generator.close()
    generator.run()
    return told


def is_whole(pieces: list[Piece], prompt: str, tokens: int) -> bool:
    ids = list(prompt.encode())
    right = bytes(whole_text(ids, Sampling(max_position=len(ids) + tokens))).decode()
    return "".join(piece.text for piece in pieces) == right


def test_a_request_that_the_plan_cannot_take_ends_alone(
    site: Site, pipeline: TokenPipeline, tokenizer: TextTokenizer
) -> None:
    good = request(site.plan, "once", 20)
    bad = Request((*good.prompt, 1), good.sampling._replace(max_position=10_000))
    told = run(Generator(pipeline, tokenizer), [bad, good])
    assert told[0] == [Piece("", FinishReason.FAILED, told[0][0].detail)]
    assert "10,000" in told[0][0].detail
    assert is_whole(told[1], "once", 20)


def test_a_token_that_becomes_no_text_ends_its_request_alone(
    site: Site, pipeline: TokenPipeline, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = tokenizer.decode

    def fails_with_q(token_ids: list[int]) -> str:
        if ord("Q") in token_ids:
            raise IndexError("a decoder of the model's maker")
        return decode(token_ids)

    monkeypatch.setattr(tokenizer, "decode", fails_with_q)
    generator = Generator(pipeline, tokenizer)
    told = run(generator, [request(site.plan, "Q", 20), request(site.plan, "R", 20)])
    assert [piece.finish for piece in told[0]] == [FinishReason.FAILED]
    assert "IndexError" in told[0][0].detail
    assert is_whole(told[1], "R", 20)
