"""OpenAI's own client works unchanged: chat, streams, stops, lengths, errors, several at once."""

import threading
import time

import httpx2
import openai
import pytest

import client.serving.engine
from contract.decoder import Sampling
from tests.conftest import eventually
from tests.generation.conftest import CLUSTER, Site
from tests.generation.fake_decoder import whole_text
from tests.pipeline.fakes import publish_plan
from tests.serving.conftest import Serve, Served

CHAT = [{"role": "user", "content": "hello"}]
RENDERED = "<user>hello<assistant>"


def expected(prompt: str, tokens: int, seed: int = 0, temperature: float = 0.0) -> str:
    ids = list(prompt.encode())
    sampling = Sampling(temperature=temperature, seed=seed, max_position=len(ids) + tokens)
    return bytes(whole_text(ids, sampling)).decode()


def test_a_dialogue_s_next_turn(served: Served) -> None:
    done = served.client().chat.completions.create(
        model="text", messages=CHAT, max_tokens=12, temperature=0
    )
    [choice] = done.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected(RENDERED, 12)
    assert choice.finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(RENDERED), 12)
    assert done.object == "chat.completion"


def test_a_stream_is_the_same_text_in_pieces(served: Served) -> None:
    events = list(
        served.client().chat.completions.create(
            model="text",
            messages=CHAT,
            max_completion_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [
        e.choices[0].delta.content for e in events if e.choices and e.choices[0].delta.content
    ]
    assert "".join(pieces) == expected(RENDERED, 12)
    assert len(pieces) == 12
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == "length"
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 12
    assert len({e.id for e in events}) == 1


def test_a_text_s_continuation(served: Served) -> None:
    client = served.client()
    done = client.completions.create(
        model="text", prompt=["once", "twice"], max_tokens=8, temperature=0
    )
    texts = [choice.text for choice in done.choices]
    assert texts == [expected("once", 8), expected("twice", 8)]
    assert [choice.index for choice in done.choices] == [0, 1]
    by_token = client.completions.create(
        model="text", prompt=list(b"once"), max_tokens=8, temperature=0
    )
    assert by_token.choices[0].text == texts[0]
    streamed = client.completions.create(
        model="text", prompt="once", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(event.choices[0].text for event in streamed) == texts[0]


def test_a_stop_string_ends_the_text_before_it_and_frees_the_caches(served: Served) -> None:
    whole = expected(RENDERED, 60)
    stop = whole[20:23]
    assert whole.index(stop) == 20
    done = served.client().chat.completions.create(
        model="text", messages=CHAT, max_tokens=60, temperature=0, stop=[stop, "never there"]
    )
    assert done.choices[0].message.content == whole[:20]
    assert done.choices[0].finish_reason == "stop"
    eventually(lambda: served.site.stages["pi-0"].released, "stage 0 heard of it")


def test_several_answers_differ_and_a_seed_repeats_them(served: Served) -> None:
    def ask() -> list[str]:
        done = served.client().completions.create(
            model="text", prompt="once", max_tokens=10, temperature=1, seed=7, n=3
        )
        return [choice.text for choice in done.choices]

    first = ask()
    assert first == ask() == [expected("once", 10, seed, 1.0) for seed in (7, 8, 9)]
    assert len(set(first)) == 3


def test_the_end_token_ends_a_text(serve: Serve) -> None:
    served = serve(Site([["pi-0"], ["pi-1"]], ends=True)).wait()
    texts = [
        served.client().completions.create(
            model="text", prompt=f"seed {i}", max_tokens=100, temperature=0
        )
        for i in range(4)
    ]
    stopped = [done for done in texts if done.choices[0].finish_reason == "stop"]
    assert stopped
    for done in stopped:
        assert done.usage is not None
        assert done.usage.completion_tokens == len(done.choices[0].text) + 1


def test_models_are_listed(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == ["text"]
    assert served.client().models.retrieve("text").owned_by == "shardline"
    with pytest.raises(openai.NotFoundError) as refused:
        served.client().chat.completions.create(model="gpt-4", messages=CHAT)
    assert refused.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_says_both_numbers(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=r"300.*256") as refused:
        served.client().completions.create(model="text", prompt="a" * 300)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    long = [{"role": "user", "content": "a" * 300}]
    with pytest.raises(openai.BadRequestError, match=r"256") as refused:
        served.client().chat.completions.create(model="text", messages=long)  # type: ignore[arg-type]
    assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match=r"304.*256"):
        served.client().completions.create(model="text", prompt="a" * 4, max_tokens=300)


def test_what_asks_for_nothing_is_let_through(served: Served) -> None:
    done = served.client().chat.completions.create(
        model="text",
        messages=[
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "me"},
            {"role": "assistant", "content": "ho", "refusal": None, "tool_calls": []},
            {"role": "user", "content": "hi"},
        ],
        max_tokens=3,
        temperature=0,
        n=1,
        presence_penalty=0,
        logprobs=False,
        user="me",
        response_format={"type": "text"},
    )
    assert done.choices[0].message.content == expected(
        "<system>be kind<user>hello<assistant>ho<user>hi<assistant>", 3
    )


@pytest.mark.parametrize("template", [None, "{% surprise %}"])
def test_a_model_without_a_template_that_can_be_used_does_not_chat(
    serve: Serve, template: str | None
) -> None:
    served = serve(Site([["pi-0"], ["pi-1"]]), template=template).wait()
    with pytest.raises(openai.BadRequestError, match="chat template") as refused:
        served.client().chat.completions.create(model="text", messages=CHAT)
    assert (refused.value.param, refused.value.code) == ("messages", "invalid_value")


def test_several_clients_at_once_get_each_its_own(served: Served) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        done = served.client().completions.create(
            model="text", prompt=f"number {number}", max_tokens=40, temperature=0
        )
        texts[number] = done.choices[0].text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert texts == {n: expected(f"number {n}", 40) for n in range(12)}


def slow(served: Served) -> None:
    right = served.site.last.choose

    def choose(history: list[int], sampling: Sampling) -> int:
        time.sleep(0.01)
        return right(history, sampling)

    served.site.last.choose = choose  # type: ignore[assignment]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_released(served: Served, stream: bool) -> None:
    slow(served)
    fields = {"model": "text", "prompt": "once", "max_tokens": 200, "stream": stream}
    if stream:
        events = served.client().completions.create(**fields)  # type: ignore[call-overload]
        next(iter(events))
        events.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            served.client().with_options(timeout=0.4).completions.create(**fields)  # type: ignore[call-overload]
    eventually(lambda: served.site.stages["pi-0"].released, "stage 0 heard of it")
    assert len(served.site.last.results) < 190
    ready = served.engine.ready()
    eventually(lambda: not ready.generator.in_hand, "nothing is in hand")


def test_a_new_plan_of_the_same_model_is_known_by_its_name(served: Served) -> None:
    renamed = served.site.plan.model_copy(update={"name": "renamed"})
    publish_plan(served.site.broker.connect, renamed, CLUSTER)
    asks = served.client()
    eventually(lambda: [m.id for m in asks.models.list()] == ["renamed"], "it is listed")
    assert httpx2.get(f"{served.url}/health").json()["model"] == "renamed"
    done = asks.completions.create(model="renamed", prompt="once", max_tokens=8, temperature=0)
    assert (done.model, done.choices[0].text) == ("renamed", expected("once", 8))
    with pytest.raises(openai.NotFoundError):
        asks.completions.create(model="text", prompt="once")


def test_more_texts_than_may_wait_are_refused_all_together(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.serving.engine, "MAX_IN_HAND", 4)
    go_on = threading.Event()
    right = served.site.last.choose

    def choose(history: list[int], sampling: Sampling) -> int:
        assert go_on.wait(20)
        return right(history, sampling)

    served.site.last.choose = choose  # type: ignore[assignment]
    generator = served.engine.ready().generator
    texts: list[str] = []

    def ask(number: int, stream: bool) -> None:
        done = served.client().completions.create(  # type: ignore[call-overload]
            model="text", prompt="once", n=number, max_tokens=3, temperature=0, stream=stream
        )
        if not stream:
            texts.extend(choice.text for choice in done.choices)

    thread = threading.Thread(target=ask, args=(3, False))
    thread.start()
    eventually(lambda: generator.in_hand == 3, "three are in hand")
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as refused:
            ask(2, stream)
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.response.headers["retry-after"]
    assert generator.in_hand == 3
    one = threading.Thread(target=ask, args=(1, False))
    one.start()
    eventually(lambda: generator.in_hand == 4, "all places are taken")
    assert [model.id for model in served.client().models.list()] == ["text"]
    assert httpx2.get(f"{served.url}/health").status_code == 200
    go_on.set()
    thread.join()
    one.join()
    assert texts == 4 * [expected("once", 3)]


def test_the_text_survives_a_stage(serve: Serve) -> None:
    served = serve(Site([["pi-0", "pi-9"], ["pi-1"]])).wait()
    slow(served)
    events = served.client().completions.create(
        model="text", prompt="once", max_tokens=60, temperature=0, stream=True
    )
    pieces = []
    for event in events:
        pieces.append(event.choices[0].text)
        if len(pieces) == 20:
            first = served.site.last.steps[-1][0].route[0]
            served.site.stages[first].die()
    assert "".join(pieces) == expected("once", 60)


def test_without_a_model_clients_are_told_when_to_come_back(serve: Serve) -> None:
    site = Site([["pi-0"], ["pi-1"]])
    site.stages["pi-1"].die()
    served = serve(site)
    with pytest.raises(openai.InternalServerError) as refused:
        served.client().completions.create(model="text", prompt="once")
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"]
    assert httpx2.get(f"{served.url}/health").status_code == 503
    site.stages["pi-1"].start()
    served.wait()
    assert httpx2.get(f"{served.url}/health").json() == {"ok": True, "model": "text"}
    assert served.client().completions.create(model="text", prompt="once", max_tokens=2).choices


def test_only_who_knows_the_key_is_let_in(serve: Serve) -> None:
    key = "a-key-of-sixteen-characters"
    served = serve(Site([["pi-0"], ["pi-1"]]), key=key).wait()
    for wrong in ("none", key[:-1], key + "x"):
        with pytest.raises(openai.AuthenticationError) as refused:
            served.client(wrong).models.list()
        assert refused.value.code == "invalid_api_key"
    assert [model.id for model in served.client(key).models.list()] == ["text"]
    assert httpx2.get(f"{served.url}/health").status_code == 200


def test_pages_of_others_are_turned_away(served: Served) -> None:
    body = b'{"model": "text", "prompt": "x", "max_tokens": 1}'
    url = f"{served.url}/v1/completions"
    plain = httpx2.post(url, content=body, headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    named = httpx2.get(f"{served.url}/v1/models", headers={"host": "evil.example"})
    assert named.status_code == 421
    assert httpx2.post(f"{served.url}/v1/embeddings", json={}).json()["error"]["type"]
    broken = httpx2.post(url, content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400


def test_the_end_of_the_server_ends_its_texts(served: Served) -> None:
    slow(served)
    events = served.client().completions.create(
        model="text", prompt="once", max_tokens=200, stream=True
    )
    next(iter(events))
    served.server.stop()
    with pytest.raises(openai.APIError, match="the server ends"):
        list(events)
    eventually(lambda: served.site.stages["pi-0"].released, "stage 0 heard of it")
