"""`shardline generate`: text on stdout as it comes, what it took on stderr, clear refusals."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardline.generating
from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from contract.decoder import Sampling
from contract.errors import ExitCode
from contract.plan import Plan
from tests.conftest import Done, Run, eventually
from tests.generation.fake_decoder import FakeStage, make_text_plan, make_tokenizer, whole_text
from tests.pipeline.fakes import place_on, publish_plan
from tests.tiny import make_tiny_plan


class Lab:
    """A language model that is running, its tokenizer where the command looks for it."""

    def __init__(
        self, run: Run, connect: Connect, broker: EmbeddedBroker, cluster: str, unique: str
    ) -> None:
        self._run, self._at = run, ["--broker", str(broker.address), "--cluster", cluster]
        self.folder = Path("shards/built/text/tokenizer")  # `run` has gone to an empty folder
        sha256 = make_tokenizer(self.folder)
        devices = [f"a-{unique}", f"b-{unique}"]
        self.plan: Plan = make_text_plan(
            [[device] for device in devices], cluster, tokenizer_sha256=sha256
        )
        self.stages = [FakeStage(connect, cluster, self.plan, device) for device in devices]
        publish_plan(connect, self.plan, cluster)

    def generate(self, *arguments: object) -> Done:
        return self._run("generate", *arguments, *self._at)

    def infer(self, *arguments: object) -> Done:
        return self._run("infer", *arguments, *self._at)


@pytest.fixture
def lab(
    run: Run, connect: Connect, shared_broker: EmbeddedBroker, cluster: str, unique: str
) -> Iterator[Lab]:
    lab = Lab(run, connect, shared_broker, cluster, unique)
    yield lab
    for stage in lab.stages:
        stage.close()


def text(prompt: str, tokens: int, seed: int = 0, temperature: float = 0.0) -> str:
    ids = list(prompt.encode())
    sampling = Sampling(temperature=temperature, seed=seed, max_position=len(ids) + tokens)
    return bytes(whole_text(ids, sampling)).decode()


@pytest.mark.usefixtures("patient")
def test_the_text_goes_to_stdout_and_what_it_took_to_stderr(lab: Lab) -> None:
    done = lab.generate("once upon", "--max-tokens", 30)
    assert done.code == 0, done.err
    assert done.out == text("once upon", 30) + "\n"
    assert "30 tokens, first after " in done.err
    assert " tokens/s, 0 retried, 0 near ties" in done.err


def test_it_streams(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(shardline.generating, "show_piece", pieces.append)
    assert lab.generate("once", "--max-tokens", 10).code == 0
    assert pieces == [*text("once", 10), "\n"]


@pytest.mark.usefixtures("patient")
def test_a_document_for_scripts(lab: Lab) -> None:
    done = lab.generate(
        *("once", "--json", "--sequences", 3, "--seed", 5, "--temperature", 0.8),
        *("--max-tokens", 12),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [entry["seed"] for entry in document["texts"]] == [5, 6, 7]
    assert [entry["text"] for entry in document["texts"]] == [
        text("once", 12, seed, 0.8) for seed in (5, 6, 7)
    ]
    assert {entry["finish_reason"] for entry in document["texts"]} == {"length"}
    assert document["tokens"] == 36
    assert document["tokens_per_s"] > 0
    assert document["first_token_ms"] > 0
    assert (document["retried"], document["near_ties"]) == (0, 0)


def test_several_texts_are_told_apart(lab: Lab) -> None:
    done = lab.generate("once", "--sequences", 2, "--temperature", 1, "--max-tokens", 5)
    first, second = text("once", 5, 0, 1.0), text("once", 5, 1, 1.0)
    assert done.out == f"--- 1, seed 0\n{first}\n--- 2, seed 1\n{second}\n"


def test_a_prompt_may_come_by_stdin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from\na pipe"))
    assert lab.generate("-", "--max-tokens", 6).out == text("from\na pipe", 6) + "\n"


@pytest.mark.parametrize("how", ["-", "--chat"])
def test_bytes_of_stdin_that_are_no_text_are_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (lab.folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9 au\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", stdin)
    done = lab.generate(how)
    assert done.code == ExitCode.SETTINGS
    assert "PromptError: character 3 of the prompt is half of a surrogate pair" in done.err
    assert not lab.stages[0].steps


def test_a_stop_string_ends_the_text(lab: Lab) -> None:
    whole = text("once", 40)
    stop = whole[10:13]
    done = lab.generate("once", "--stop", stop, "--max-tokens", 40)
    assert done.out == whole[: whole.index(stop)] + "\n"
    eventually(lambda: lab.stages[0].released, "stage 0 heard of it")


def test_a_dialogue_holds_all_that_was_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}a:"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("and\n\nthen\n"))
    done = lab.generate("hi", "--chat", "--max-tokens", 4)
    assert done.code == 0, done.err
    prompt, answers = "", []
    for turn in ("hi", "and", "then"):
        prompt += f"u:{turn}|"
        answers.append(text(prompt + "a:", 4))
        prompt += f"a:{answers[-1]}|"
    assert done.out.splitlines() == answers


def test_a_model_without_template_does_not_converse(lab: Lab) -> None:
    done = lab.generate("hi", "--chat")
    assert done.code == ExitCode.SETTINGS
    assert "chat_template" in done.err


def test_a_prompt_without_room_says_both_numbers(lab: Lab) -> None:
    done = lab.generate("a" * 100, "--max-tokens", 50)
    assert done.code == ExitCode.SETTINGS
    assert "100 tokens" in done.err
    assert "128" in done.err
    assert not lab.stages[0].steps


def test_another_model_s_tokenizer_is_refused(lab: Lab, tmp_path: Path) -> None:
    other = lab.folder / "tokenizer.json"
    other.write_text(other.read_text() + " ")
    done = lab.generate("once")
    assert done.code == ExitCode.SETTINGS
    assert "sha256" in done.err
    assert "--tokenizer" in done.err
    done = lab.generate("once", "--tokenizer", tmp_path / "nowhere")
    assert done.code == ExitCode.SETTINGS
    assert "no such file" in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_frees_what_the_stages_keep(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def interrupt(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(shardline.generating, "show_piece", interrupt)
    done = lab.generate("once", "--max-tokens", 100)
    assert done.code == ExitCode.INTERRUPTED
    eventually(lambda: lab.stages[0].released, "stage 0 heard of it")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "PROMPT"),
        (("--chat", "--sequences", 2), "--sequences"),
        (("-", "--chat"), "stdin"),
        (("x", "--stop", ""), "--stop"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    lab: Lab, arguments: tuple[object, ...], said: str
) -> None:
    done = lab.generate(*arguments)
    assert done.code == ExitCode.SETTINGS
    assert said in done.err


def test_images_and_texts_each_have_their_command(
    lab: Lab, run: Run, connect: Connect, shared_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    done = lab.infer("dummy:1")
    assert done.code == ExitCode.PLAN_OR_SHARD
    assert "use `shardline generate`" in done.err
    done = lab.infer("dummy:1", "--journal", "run.journal")
    assert done.code == ExitCode.JOURNAL
    assert "language model" in done.err
    # The tiny image model, on devices that say that they have it.
    cluster = f"images-{lab.stages[0].device}"
    tiny = make_tiny_plan(tmp_path, devices=())
    names = [f"{name}-{lab.stages[0].device}" for name in ("x", "y", "z")]
    plan = place_on(tiny, names, cluster)
    stages = [FakeStage(connect, cluster, plan, name) for name in names]
    publish_plan(connect, plan, cluster)
    done = run("generate", "x", "--broker", str(shared_broker.address), "--cluster", cluster)
    assert done.code == ExitCode.PLAN_OR_SHARD
    assert "use `shardline infer`" in done.err
    for stage in stages:
        stage.close()
