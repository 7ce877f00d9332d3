"""`shardline plan hf:DIR`: from options to a plan of a language model, and its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from broker.mosquitto_conf import MAX_QUEUED_MESSAGES
from contract.decoder import MAX_CONTEXT_TOKENS, MAX_SEQUENCES, Decoding, Quantisation
from contract.errors import EnvironmentMissingError, SettingsError
from contract.plan import Plan, Replica
from contract.prediction import Strategy
from contract.topics import check_name
from planner.rules import Method, Objective
from shardline.console import out, print_json, size, steps
from shardline.plan_table import perplexity_line, stages_table, verification_line
from shardline.verdict_table import print_findings
from stage.cores import available_cores

DEFAULT_CONTEXT, DEFAULT_SEQUENCES, DEFAULT_CHUNK = 1024, 4, 64
QUANTISATIONS = ("none", "int8", "int4")
_PACKAGES = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "tokenizers"}


@dataclass(frozen=True)
class DecoderOptions:
    """What `plan` was asked for; None where its default holds."""

    model: str
    context: int | None
    sequences: int | None
    chunk: int | None
    quantise: str | None
    text: Path | None
    stages: int | None
    cut: tuple[str, ...]
    list_cuts: bool
    batch: int
    device: tuple[str, ...]
    devices: Path | None
    strategy: str | None
    objective: str
    partitioner: str
    plan_seconds: float
    name: str
    out: Path
    cluster: str
    threads: int
    as_json: bool


def plan_decoder(options: DecoderOptions) -> None:
    """Plan, and print what came of it.

    Raises:
        SettingsError: options that contradict each other or the model.
        EnvironmentMissingError: a package of the planner is not installed.
        ShardlineError: see :func:`planner.language.build.build_decoder_plan`.
    """
    try:
        _plan(options)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise EnvironmentMissingError(
            f"{options.model}: the package {package} is not installed here; planning needs it "
            "(stages do not): pip install 'shardline[planner]'"
        ) from error


def decoding_of(options: DecoderOptions, max_positions: int) -> Decoding:
    """What the caches are made for.

    Raises:
        SettingsError: the options contradict each other, or pass a limit of the plan.
    """
    context = options.context or min(DEFAULT_CONTEXT, max_positions)
    chunk = options.chunk or min(DEFAULT_CHUNK, context)
    sequences = options.sequences or max(DEFAULT_SEQUENCES, min(options.batch, MAX_SEQUENCES))
    for flag, given, limit in (
        ("--context", context, MAX_CONTEXT_TOKENS),
        ("--sequences", sequences, MAX_SEQUENCES),
        ("--batch", options.batch, MAX_SEQUENCES),
    ):
        if given > limit:
            raise SettingsError(f"{flag} {given:,}: a language model's plan has at most {limit:,}")
    if chunk > context:
        raise SettingsError(f"--chunk {chunk}: longer than --context {context}")
    messages = -(-context // chunk)
    if messages > MAX_QUEUED_MESSAGES:
        raise SettingsError(
            f"--chunk {chunk}: a prompt of --context {context:,} would be {messages:,} messages, "
            f"and the broker keeps {MAX_QUEUED_MESSAGES:,} for a receiver; give --chunk "
            f"{-(-context // MAX_QUEUED_MESSAGES)} or more"
        )
    if options.batch > sequences:
        raise SettingsError(
            f"--batch {options.batch}: a batch has as many sequences, and there are caches for "
            f"--sequences {sequences}"
        )
    return Decoding(
        context_tokens=context,
        sequences=sequences,
        chunk_tokens=chunk,
        quantisation=quantisation_of(options),
    )


def quantisation_of(options: DecoderOptions) -> Quantisation:
    """How weights are to be stored.

    Raises:
        SettingsError: it is none of the ways, or a text is given that nothing is measured on.
    """
    quantise = options.quantise or "none"
    if quantise not in QUANTISATIONS:
        raise SettingsError(f"--quantise {quantise!r}: expected one of {', '.join(QUANTISATIONS)}")
    if options.text is not None and quantise == "none":
        raise SettingsError("--text is what --quantise is measured on; give --quantise, too")
    return cast(Quantisation, quantise)


def check_options(options: DecoderOptions) -> None:
    """What can be said against the options before the model is read, which takes minutes.

    Raises:
        SettingsError: they contradict each other, or a name cannot be one.
    """
    quantisation_of(options)
    check_name("plan", options.name)
    for device in options.device:
        check_name("device", device)
    # A model of fewer positions than the default may allow less: that is looked at again with it.
    decoding_of(options, DEFAULT_CONTEXT)


def _plan(options: DecoderOptions) -> None:
    from planner.graph import segment_graph
    from planner.importers.transformers_directory import SCHEME, import_transformers_directory
    from planner.language.build import build_decoder_plan
    from planner.language.canonical import canonicalise_decoder
    from planner.language.memory import peak_bytes
    from planner.language.perplexity import check_tokenizer, read_text
    from planner.request import PlanRequest
    from shardline.cuts_table import print_cuts
    from shardline.planning import decoder_fleet_of_file, decoder_sites

    check_options(options)
    fleet = None if options.devices is None else decoder_fleet_of_file(options.devices)
    text = None if options.text is None else read_text(options.text)
    folder = Path(options.model.removeprefix(SCHEME))
    if text is not None and folder.is_dir():
        check_tokenizer(folder)
    engine_threads = options.threads or available_cores()
    with steps("planning") as step:
        imported = import_transformers_directory(folder, step)
        before_bytes = peak_bytes()
        decoding = decoding_of(options, imported.facts.max_positions)
        graph = segment_graph(canonicalise_decoder(imported, decoding, step))
        if not options.list_cuts:
            request = PlanRequest(
                name=options.name,
                out_dir=options.out,
                num_stages=options.stages,
                cuts=options.cut or None,
                batch_size=options.batch,
                threads=engine_threads,
                partitioner=cast(Method, options.partitioner),
                strategy=cast(Strategy | None, options.strategy),
                objective=cast(Objective, options.objective),
                plan_seconds=options.plan_seconds,
                site=decoder_sites(fleet, graph, options.batch, engine_threads) if fleet else None,
                devices=tuple((Replica(device=device),) for device in options.device) or None,
                cluster=options.cluster,
            )
            built = build_decoder_plan(imported, graph, request, step, text)
    if options.list_cuts:
        print_cuts(graph, options.as_json)
    elif options.as_json:
        print_json(built.model_dump(mode="json"))
    else:
        _report(options, built, before_bytes, peak_bytes())


def _report(options: DecoderOptions, plan: Plan, before_bytes: int, peak_bytes: int) -> None:
    out.print(stages_table(plan))
    out.print(verification_line(plan), markup=False, soft_wrap=True)
    if plan.decoding is not None and plan.decoding.quantisation != "none":
        out.print(perplexity_line(plan.decoding), markup=False, soft_wrap=True)
    print_findings(plan, out)
    out.print(
        f"planning took {size(peak_bytes)} of memory at its peak, {size(before_bytes)} of them "
        f"before the first weight was read; the weights are "
        f"{size(sum(stage.weight_bytes for stage in plan.stages))}",
        soft_wrap=True,
    )
    out.print(f"written to {options.out / plan.name}", soft_wrap=True)
    out.print(f"next: shardline publish {options.out / plan.name}", soft_wrap=True)
