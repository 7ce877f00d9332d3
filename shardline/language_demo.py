"""`shardline demo --model hf:DIR`: a language model once through everything, the text checked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from client.batch import DeadBatch, Tokens
from client.generation.pipeline import TokenPipeline
from client.generation.request import batch_of, make_request
from client.settings import ClientSettings, random_client_name
from contract.activation import Hop
from contract.decoder import Decoding, Finish, Sampling
from contract.errors import DeliveryError, VerificationError
from contract.metrics import Ledger
from contract.plan import Plan, Replica
from shardline.console import err, out, size, steps
from shardline.demo import stage_processes
from shardline.generating import check_packages, open_tokenizer, show_piece
from shardline.inference import ledger_line
from shardline.language_planning import DEFAULT_CHUNK, DEFAULT_CONTEXT, DEFAULT_SEQUENCES
from shardline.plan_table import new_table, shape, verification_line

if TYPE_CHECKING:
    from client.tokenizer import TextTokenizer
    from planner.importers.transformers_directory import ImportedDecoder
    from planner.language.check_text import TextCheck

PROMPT = "## Why a stage"
MAX_TOKENS = 96
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Demo:
    """What is asked for. ``name``: of the plan."""

    model: str
    name: str
    folder: Path
    stages: int
    prompt: str
    max_tokens: int

    @property
    def devices(self) -> list[str]:
        """One for each stage."""
        return [f"stage-{index}" for index in range(self.stages)]


@dataclass(frozen=True, slots=True)
class Text:
    """What came of the prompt: its tokens and those after it, and how long they took."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]
    first_token_s: float
    going_on_s: float
    compute_us: tuple[int, ...]
    ledger: Ledger

    @property
    def tokens_per_s(self) -> float | None:
        """Of those after the first: what the prompt took is in the time until that one."""
        after = len(self.written) - 1
        return after / self.going_on_s if after and self.going_on_s else None


def run_language_demo(demo: Demo) -> None:
    """Plan, run the stages as processes, write, compare, and say so.

    Raises:
        VerificationError: the text is not the whole model's, or its logits differ.
        DeliveryError: it did not come to its end.
        ShardlineError: see the parts.
    """
    from broker.connection import Connector
    from broker.embedded import EmbeddedBroker
    from planner.language.check_text import check_text
    from planner.publish import Publisher

    started = time.perf_counter()
    imported, plan = _plan(demo)
    err.print(
        f"planned {demo.model} in {time.perf_counter() - started:.1f} s; {verification_line(plan)}",
        markup=False,
        soft_wrap=True,
    )
    tokenizer = open_tokenizer(plan, demo.folder / plan.name / "tokenizer")
    with EmbeddedBroker() as embedded:
        connect = Connector(embedded.address)
        where = (demo.devices, demo.folder / plan.name, str(embedded.address))
        with stage_processes(*where) as check:
            with Publisher(connect, "default", "planner") as publisher, steps("starting") as step:

                def watch(description: str, fraction: float) -> None:
                    check()
                    step(description, fraction)

                publisher.publish(plan)
                publisher.wait_until_ready(plan, READY_TIMEOUT_S, watch)
            settings = ClientSettings(name=random_client_name())
            with TokenPipeline(settings, connect) as pipeline:
                pipeline.on_metrics = lambda _metrics: check()  # a stage that died ends the demo
                pipeline.open()
                text = write(pipeline, tokenizer, demo, show_piece)
    show_piece("\n\n")
    with steps("asking the whole model") as step:
        ids = np.array([[*text.prompt, *text.written]], np.int64)
        found = check_text(
            demo.folder / plan.name, plan, imported, ids, len(text.prompt), progress=step
        )
    _print(plan, text, found, time.perf_counter() - started)
    if text.ledger.lost or text.ledger.dead:
        raise DeliveryError(f"{text.ledger.lost} batches lost, {text.ledger.dead} dead")
    if found.failures:
        raise VerificationError("; ".join(found.failures))
    out.print("[green]all of that holds[/]")


def _plan(demo: Demo) -> "tuple[ImportedDecoder, Plan]":
    check_packages("transformers", "tokenizers", "jinja2")
    from planner.graph import segment_graph
    from planner.importers.transformers_directory import SCHEME, import_transformers_directory
    from planner.language.build import build_decoder_plan
    from planner.language.canonical import canonicalise_decoder
    from planner.request import PlanRequest

    with steps("planning") as step:
        imported = import_transformers_directory(Path(demo.model.removeprefix(SCHEME)), step)
        context = min(DEFAULT_CONTEXT, imported.facts.max_positions)
        decoding = Decoding(
            context_tokens=context,
            sequences=DEFAULT_SEQUENCES,
            chunk_tokens=min(DEFAULT_CHUNK, context),
        )
        graph = segment_graph(canonicalise_decoder(imported, decoding, step))
        request = PlanRequest(
            name=demo.name,
            out_dir=demo.folder,
            num_stages=demo.stages,
            threads=1,
            devices=tuple((Replica(device=device),) for device in demo.devices),
        )
        return imported, build_decoder_plan(imported, graph, request, step)


def write(
    pipeline: TokenPipeline,
    tokenizer: "TextTokenizer",
    demo: Demo,
    show: Callable[[str], None],
) -> Text:
    """Go on with the prompt, the likeliest token each time; ``show`` gets the text as it comes.

    Raises:
        PromptError: there is no room for it.
        DeliveryError: it was given up.
    """
    from client.tokenizer import TextStream

    prompt = tuple(tokenizer.encode(demo.prompt))
    request = make_request(prompt, Sampling(), demo.max_tokens, pipeline.plan)
    stream = TextStream(tokenizer, prompt)
    written: list[int] = []
    computed = [0] * pipeline.plan.num_stages
    begun = time.perf_counter()
    first = last = begun
    show(demo.prompt)
    for event in pipeline.generate([batch_of([request], ["demo"])]):
        if isinstance(event, DeadBatch):
            raise DeliveryError(f"the text did not come to its end: {event.detail}")
        if not isinstance(event, Tokens) or (token := event.token_ids[0]) is None:
            continue
        last = time.perf_counter()
        first = first if written else last
        written.append(token)
        if event.finish[0] is not Finish.END_TOKEN:
            show(stream.add(token))
        for index, took_us in enumerate(stage_times(event.hops)):
            computed[index] += took_us
    show(stream.finish())
    counts = pipeline.counts(finished=True)
    return Text(prompt, tuple(written), first - begun, last - first, tuple(computed), counts)


def stage_times(hops: Sequence[Hop]) -> list[int]:
    """Microseconds that each stage has computed. Pure."""
    return [hop.finished_us - hop.started_us for hop in hops]


def _print(plan: Plan, text: Text, found: "TextCheck", seconds: float) -> None:
    table = new_table(f"{plan.model.name} in {plan.num_stages} stages  ·  plan {plan.plan_id}")
    table.add_column("stage")
    table.add_column("share of time", no_wrap=True)
    for column in ("weights", "caches", "sends/token"):
        table.add_column(column, justify="right")
    table.add_column("tensor")
    whole = sum(text.compute_us) or 1
    for stage, took_us in zip(plan.stages, text.compute_us, strict=True):
        assert stage.cache is not None
        assert plan.decoding is not None
        bar = "█" * max(1, round(took_us / whole * 20))
        table.add_row(
            str(stage.stage_index),
            f"[cyan]{bar:<20}[/] {took_us / whole:4.0%}",
            size(stage.weight_bytes),
            size(stage.cache.bytes_of(plan.decoding)),
            size(stage.output_bytes_per_image),
            shape(stage.outputs[0]),
        )
    out.print(table)
    assert plan.decoding is not None
    facts = Table(show_header=False, box=None)
    rate = text.tokens_per_s
    facts.add_row(
        "text",
        f"{len(text.written)} tokens after a prompt of {len(text.prompt)}, the first after "
        f"{text.first_token_s * 1000:.0f} ms" + ("" if rate is None else f", {rate:,.0f} tokens/s"),
    )
    facts.add_row(
        "caches",
        f"{plan.decoding.sequences} sequences of {plan.decoding.context_tokens:,} tokens",
    )
    facts.add_row("tokens", _tokens_line(found))
    facts.add_row(
        "difference",
        f"logits differ by {found.max_abs_difference:.2g} at most, the largest is "
        f"{found.max_abs_reference:.3g} (tolerance {found.tolerance:g})",
    )
    facts.add_row("against", found.reference)
    facts.add_row("ledger", ledger_line(text.ledger))
    facts.add_row("took", f"{seconds:.1f} s")
    out.print(facts)


def _tokens_line(found: "TextCheck") -> str:
    same = found.tokens - found.others
    line = f"{same} of {found.tokens} are those that the whole model chooses"
    return line if not found.others else f"{line}, {found.near_ties} others are near ties"
