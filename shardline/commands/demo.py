"""`shardline demo`: everything once, on this machine, with the result checked."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from client.batch import BatchResult
    from contract.plan import Plan
    from shardline.demo import Judgement

DIGITS_MODEL = "torchvision:mobilenet_v2"
DIGITS_WEIGHTS = Path("examples/digits/weights.safetensors")
DIGITS_IMAGES = Path("examples/digits/held_out")
PHOTOGRAPHS = Path("examples/photographs")


def run(
    model: Annotated[
        str | None,
        option("--model", "MODEL as in `plan`; default: the trained digits model of this repo."),
    ] = None,
    images: Annotated[
        str | None, option("--images", "Pictures to feed; default: the held-out digits.")
    ] = None,
    prompt: Annotated[
        str | None, option("--prompt", "Text that a language model (hf:DIR) goes on with.")
    ] = None,
    max_tokens: Annotated[
        int | None, option("--max-tokens", "Tokens to write, at most, of each text.", min=1)
    ] = None,
    weights: Annotated[
        str | None,
        option("--weights", "As in `plan`; default: the digits' own, random for another model."),
    ] = None,
    stages: Annotated[int, option("--stages", "How many stages.", min=1)] = 3,
    batch: Annotated[
        int | None,
        option("--batch", "Images in a batch; default 8, 1 for another model.", min=1, max=4096),
    ] = None,
    seed: options.Seed = 0,
    out: Annotated[Path, option("--out", "Folder of built plans.")] = options.SHARDS_DIR,
    verbose: options.Verbose = False,
) -> None:
    """Plan a model, run it in three stage processes over an embedded broker, check the result.

    Ends with 0 only if no batch was lost and the pipeline's answers are the whole model's. Of a
    language model (hf:DIR) the answer is a text, token by token the whole model's.
    """
    from shardline.commands.plan import LANGUAGE_MODELS, plan_name

    if model is not None and model.startswith(LANGUAGE_MODELS):
        _run_language(model, images, weights, batch, seed, prompt, max_tokens, stages, out, verbose)
        return
    from broker.connection import Connector
    from broker.embedded import EmbeddedBroker
    from client.batch import BatchResult
    from client.pipeline import Pipeline
    from client.settings import ClientSettings, random_client_name
    from client.sources import batches, source_of_plan
    from contract.errors import DeliveryError, SettingsError, VerificationError
    from contract.plan import Replica
    from shardline.console import err, progress_bar, set_up_logging, steps
    from shardline.console import out as stdout
    from shardline.demo import judge, stage_processes
    from shardline.importing import import_options
    from shardline.plan_table import verification_line

    set_up_logging(verbose)
    if prompt is not None or max_tokens is not None:
        raise SettingsError("--prompt and --max-tokens are for language models: --model hf:DIR")
    own_model = model is None
    model = model or DIGITS_MODEL
    weights = weights or (str(DIGITS_WEIGHTS) if own_model else "random")
    batch = batch or (8 if own_model else 1)
    images = images or str(DIGITS_IMAGES if own_model else PHOTOGRAPHS)
    chosen = import_options(weights, seed, None, None, None, None, None, "auto")
    devices = [f"stage-{index}" for index in range(stages)]

    from planner.build import build_plan
    from planner.canonical import canonicalise
    from planner.graph import segment_graph
    from planner.importers import import_model
    from planner.publish import Publisher
    from planner.request import PlanRequest

    started = time.perf_counter()
    with EmbeddedBroker() as embedded:
        connect = Connector(embedded.address)
        with steps("planning") as step:
            imported = import_model(model, chosen, step)
            graph = segment_graph(canonicalise(imported, step))
            request = PlanRequest(
                name="demo-digits" if own_model else f"demo-{plan_name(model)}",
                out_dir=out,
                num_stages=stages,
                batch_size=batch,
                threads=1,
                devices=tuple((Replica(device=device),) for device in devices),
            )
            plan = build_plan(imported, graph, request, step)
        del graph
        planned = time.perf_counter()
        err.print(
            f"planned {model} in {planned - started:.1f} s; {verification_line(plan)}",
            markup=False,
            soft_wrap=True,
        )
        with stage_processes(devices, out / plan.name, str(embedded.address)) as check:
            with Publisher(connect, "default", "planner") as publisher, steps("starting") as step:

                def watch(description: str, fraction: float) -> None:
                    check()
                    step(description, fraction)

                publisher.publish(plan)
                publisher.wait_until_ready(plan, 60, watch)
            settings = ClientSettings(name=random_client_name())
            with Pipeline(settings, connect) as pipeline, progress_bar() as bar:
                pipeline.open()
                source = source_of_plan(images, plan)
                work = list(batches(source.items, plan.stages[0].inputs[0].name, batch))
                task = bar.add_task("images", total=sum(b.images for b in work), note="")
                pipeline.on_metrics = lambda _metrics: check()  # a stage that died ends the demo
                began = time.perf_counter()
                results = []
                for end in pipeline.run(work):
                    if isinstance(end, BatchResult):
                        results.append(end)
                    bar.advance(task, end.batch.images)
                seconds = time.perf_counter() - began
                ledger = pipeline.counts(finished=True)
    name = plan.stages[0].inputs[0].name
    with steps("asking the whole model") as step:
        answers = []
        for index, result in enumerate(results):
            answer = imported.reference(result.batch.tensors[name])
            answers.append(next(iter(answer.values())))
            step("asking the whole model", (index + 1) / len(results))
    judgement = judge(results, answers, ledger, plan.verification.tolerance)
    _print(
        plan, results, judgement, seconds, time.perf_counter() - started, imported.reference_name
    )
    for detail in source.skipped:
        err.print(f"skipped: {detail}", markup=False)
    if ledger.lost or ledger.dead:
        raise DeliveryError("; ".join(judgement.failures))
    if judgement.failures:
        raise VerificationError("; ".join(judgement.failures))
    stdout.print("[green]all of that holds[/]")


def _run_language(
    model: str,
    images: str | None,
    weights: str | None,
    batch: int | None,
    seed: int,
    prompt: str | None,
    max_tokens: int | None,
    stages: int,
    folder: Path,
    verbose: bool,
) -> None:
    """The same for a language model.

    Raises:
        SettingsError: an option that is for image models.
    """
    from contract.errors import SettingsError
    from shardline.commands.plan import plan_name
    from shardline.console import set_up_logging
    from shardline.language_demo import MAX_TOKENS, PROMPT, Demo, run_language_demo

    set_up_logging(verbose)
    for flag, is_given in (
        ("--images", images is not None),
        ("--weights", weights is not None),
        ("--batch", batch is not None),
        ("--seed", seed != 0),
    ):
        if is_given:
            raise SettingsError(f"{flag} is for image models; {model} is a language model")
    run_language_demo(
        Demo(
            model=model,
            name=f"demo-{plan_name(model)}",
            folder=folder,
            stages=stages,
            prompt=PROMPT if prompt is None else prompt,
            max_tokens=max_tokens or MAX_TOKENS,
        )
    )


def _print(
    plan: "Plan",
    results: "list[BatchResult]",
    judgement: "Judgement",
    seconds: float,
    total_seconds: float,
    reference: str,
) -> None:
    from rich.table import Table

    from shardline.console import out, size
    from shardline.demo import stage_shares
    from shardline.inference import ledger_line
    from shardline.plan_table import new_table, shape

    table = new_table(f"{plan.model.name} in {plan.num_stages} stages  ·  plan {plan.plan_id}")
    table.add_column("stage")
    table.add_column("share of time", no_wrap=True)
    for column in ("weights", "sends/image"):
        table.add_column(column, justify="right")
    table.add_column("tensor")
    for stage, share in zip(plan.stages, stage_shares(results, plan), strict=True):
        bar = "█" * max(1, round(share * 20))
        table.add_row(
            str(stage.stage_index),
            f"[cyan]{bar:<20}[/] {share:4.0%}",
            size(stage.weight_bytes),
            size(stage.output_bytes_per_image),
            shape(stage.outputs[0]),
        )
    out.print(table)
    facts = Table(show_header=False, box=None)
    facts.add_row(
        "throughput", f"{judgement.images / seconds:,.0f} images/s, {plan.batch_size} a batch"
    )
    if plan.model.labels_mean_something and judgement.labelled:
        facts.add_row(
            "accuracy",
            f"pipeline {judgement.pipeline_correct / judgement.labelled:.2%}, whole model "
            f"{judgement.whole_correct / judgement.labelled:.2%} of {judgement.labelled} images",
        )
    elif not plan.model.labels_mean_something:
        facts.add_row("accuracy", "none: the weights are random, so labels mean nothing here")
    share = judgement.max_abs_difference / (judgement.max_abs_reference or 1.0)
    facts.add_row(
        "difference",
        f"largest {judgement.max_abs_difference:.2g}, {share:.1g} of the largest value "
        f"(tolerance {judgement.tolerance:g}), against {reference}",
    )
    facts.add_row("ledger", ledger_line(judgement.ledger))
    facts.add_row("took", f"{total_seconds:.1f} s")
    out.print(facts)
