"""Behind `shardline generate`: prompts to texts on stdout as they come, and what it took."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.generation.pipeline import TokenPipeline
from client.generation.request import context_of
from contract.decoder import Sampling
from contract.errors import DeliveryError, EnvironmentMissingError, PlanError, SettingsError
from contract.plan import Plan
from contract.printable import printable
from shardline.console import err, print_json
from shardline.options import SHARDS_DIR

if TYPE_CHECKING:
    from client.generation.job import Job, Piece
    from client.tokenizer import TextTokenizer


def open_tokenizer(plan: Plan, folder: Path | None) -> "TextTokenizer":
    """The tokenizer of a language model's plan.

    Raises:
        PlanError: the plan is none of a language model.
        SettingsError: no tokenizer, or not the plan's.
        EnvironmentMissingError: its packages are not installed here.
    """
    if plan.decoding is None:
        raise PlanError(
            f"plan {plan.name} is of {plan.model.name}, which is no language model: "
            "use `shardline infer`"
        )
    check_packages("jinja2", "tokenizers")
    from client.tokenizer import TextTokenizer

    if folder is None:
        if Path(plan.name).name != plan.name:
            raise SettingsError(f"plan {plan.name!r}: is no name of a folder; use --tokenizer DIR")
        folder = SHARDS_DIR / plan.name / "tokenizer"
    return TextTokenizer(folder, plan.decoding.tokenizer_sha256)


def check_packages(*names: str) -> None:
    """Say in one sentence what is not installed.

    Raises:
        EnvironmentMissingError: one of them is not.
    """
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise EnvironmentMissingError(
            f"{missing[0]} is not installed: texts need it, a stage does not; run `make setup`, or "
            "pip install 'shardline[llm]'"
        )


@dataclass(slots=True)
class Text:
    """One sequence: what was written so far."""

    seed: int
    pieces: list[str] = field(default_factory=list)
    finish: str = ""
    detail: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Written:
    """What one prompt has given, and what it took."""

    texts: tuple[Text, ...]
    tokens: int
    seconds: float
    tokens_per_s: float | None
    first_token_ms: float | None
    retried: int
    near_ties: int

    def line(self) -> str:
        """It in one line."""
        rate = "" if self.tokens_per_s is None else f", {self.tokens_per_s:,.1f} tokens/s"
        after = (
            "" if self.first_token_ms is None else f", first after {self.first_token_ms:,.0f} ms"
        )
        return (
            f"{self.tokens} tokens{after}{rate}, {self.retried} retried, {self.near_ties} near ties"
        )

    def document(self, prompt: str) -> dict[str, Any]:
        """It for scripts."""
        return {
            "prompt": prompt,
            "texts": [
                {"text": text.text, "finish_reason": text.finish, "seed": text.seed}
                for text in self.texts
            ],
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_s": self.tokens_per_s,
            "first_token_ms": self.first_token_ms,
            "retried": self.retried,
            "near_ties": self.near_ties,
        }


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes texts of one pipeline. ``sequences`` copies of each prompt, with seeds that follow."""

    pipeline: TokenPipeline
    tokenizer: "TextTokenizer"
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    sequences: int = 1

    def write(self, prompt: Sequence[int], show: Callable[[str], None]) -> Written:
        """Go on with a prompt; ``show`` gets the pieces of the first text as they come.

        Raises:
            PromptError: there is no room for it.
            DeliveryError: a text did not come to its end.
        """
        from client.generation.generator import Generator
        from client.generation.request import make_request

        generator = Generator(self.pipeline, self.tokenizer)
        texts, jobs = [], []
        ties = self.pipeline.near_ties
        retried = self.pipeline.counts().retried
        begun = time.monotonic()
        for index in range(self.sequences):
            sampling = self.sampling._replace(seed=self.sampling.seed + index)
            request = make_request(prompt, sampling, self.max_tokens, self.pipeline.plan, self.stop)
            text = Text(sampling.seed)
            tell = _teller(text, show if not index else lambda _piece: None)
            jobs.append(generator.submit(request, tell))
            texts.append(text)
        generator.close()
        generator.run()
        failed = [text.detail for text in texts if text.finish == "failed"]
        if failed:
            raise DeliveryError(f"{len(failed)} texts did not come to their end: {failed[0]}")
        return _sum_up(
            texts,
            jobs,
            begun,
            self.pipeline.counts().retried - retried,
            self.pipeline.near_ties - ties,
        )


def _teller(text: Text, show: Callable[[str], None]) -> "Callable[[Piece], None]":
    def tell(piece: "Piece") -> None:
        text.pieces.append(piece.text)
        if piece.finish is not None:
            text.finish, text.detail = str(piece.finish), piece.detail
        if piece.text:
            show(piece.text)

    return tell


def _sum_up(
    texts: "list[Text]", jobs: "list[Job]", begun: float, retried: int, near_ties: int
) -> Written:
    seconds = time.monotonic() - begun
    tokens = sum(job.tokens for job in jobs)
    first = min(
        (job.first_token_at for job in jobs if job.first_token_at is not None), default=None
    )
    after = None if first is None else first - begun
    # The rate is that of going on: what the prompt took is in the time to the first token.
    going_on = tokens - len(jobs)
    rate = going_on / (seconds - after) if after is not None and going_on > 0 else None
    return Written(
        texts=tuple(texts),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=None if rate is None else round(rate, 2),
        first_token_ms=None if after is None else round(after * 1000, 1),
        retried=retried,
        near_ties=near_ties,
    )


def show_piece(piece: str) -> None:
    """A piece of a text on stdout, at once. A terminal shows what it says and never obeys it."""
    sys.stdout.write(printable(piece, keep="\n\t") if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def show_waiting(pipeline: TokenPipeline) -> None:
    """Say on stderr what holds the texts up, when that changes."""
    said = [""]

    def look(_metrics: object) -> None:
        waiting = pipeline.waiting_for()
        if waiting and waiting != said[0]:
            err.print(f"waiting: {waiting}", markup=False, soft_wrap=True)
        said[0] = waiting

    pipeline.on_metrics = look


def write_once(writer: Writer, prompt: str, as_json: bool) -> Written:
    """One prompt, and what comes of it, on stdout.

    Raises:
        PromptError, DeliveryError: see :meth:`Writer.write`.
    """
    streams = not as_json and writer.sequences == 1
    ids = writer.tokenizer.encode(prompt, context_of(writer.pipeline.plan))
    written = writer.write(ids, show_piece if streams else lambda _piece: None)
    if as_json:
        print_json(written.document(prompt))
        return written
    if streams:
        show_piece("\n")
    else:
        for number, text in enumerate(written.texts):
            show_piece(f"--- {number + 1}, seed {text.seed}\n{text.text}\n")
    err.print(written.line(), markup=False, soft_wrap=True)
    return written


def converse(writer: Writer, first: str | None, as_json: bool) -> None:
    """A dialogue: each line of stdin is a turn, until its end. ``first``: one before them.

    Raises:
        PromptError: the dialogue has grown longer than there is room for.
        SettingsError: the model has no chat template.
        DeliveryError: an answer did not come to its end.
    """
    messages: list[dict[str, str]] = []
    for turn in _turns(first):
        messages.append({"role": "user", "content": turn})
        prompt = writer.tokenizer.encode_chat(messages, context_of(writer.pipeline.plan))
        written = writer.write(prompt, (lambda _piece: None) if as_json else show_piece)
        answer = written.texts[0].text
        messages.append({"role": "assistant", "content": answer})
        if as_json:
            print_json(written.document(turn))
        else:
            show_piece("\n")
            err.print(written.line(), markup=False, soft_wrap=True)


def _turns(first: str | None) -> Iterator[str]:
    if first is not None:
        yield first
    while True:
        if sys.stdin.isatty():
            err.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
