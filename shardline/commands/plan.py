"""`shardline plan`: cut a model into shards."""

from pathlib import Path
from typing import Annotated, cast

import typer

from shardline import options
from shardline.options import option

PARTITIONERS = ("exact", "greedy", "even")
STRATEGIES = ("single", "replicas", "pipeline", "mixed")
OBJECTIVES = ("throughput", "latency")
LANGUAGE_MODELS = "hf:"
_FROM_THE_FOLDER = "is for image models; everything about a language model is in its folder"
WHY_NOT = {
    "--codec": "hidden states of language models travel as float32: a few KB a token, and an error "
    "would stay in every later token",
    "--max-accuracy-drop": "is for image models; language models travel without loss",
    "--calibration": "is for image models; --text is what quantised weights are measured on",
    "--what-if": "weighs codecs and published figures of image models; plan a language model with "
    "--devices FILE, whose verdict weighs the strategies",
}
"""Options that language models refuse, and why."""
CODECS = ("auto", "float32", "float16", "int8", "int8-per-channel")


def run(
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision:NAME, a .onnx file, module:callable, or hf:DIR (a language model)."
        ),
    ],
    stages: Annotated[int | None, option("--stages", "How many stages.", min=1)] = None,
    cut: Annotated[
        list[str] | None,
        option("--cut", "Cut here (a name of --list-cuts); repeatable, instead of --stages."),
    ] = None,
    list_cuts: Annotated[
        bool, option("--list-cuts", "Print every legal cut point and stop.")
    ] = False,
    batch: options.BatchSize = 1,
    device: Annotated[
        list[str] | None,
        option(
            "--device",
            "Device of the next stage, in order; repeatable. Default: at publish.",
            variable="DEVICES",
        ),
    ] = None,
    devices: Annotated[
        Path | None,
        option(
            "--devices",
            "The devices to plan for: a profile (.json) of `shardline profile`, or a YAML file "
            "that describes them, such as fleet.yaml.",
            variable="DEVICE_FILE",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        option(
            "--strategy",
            "How to use the devices: single, replicas, pipeline or mixed. Default: recommended.",
        ),
    ] = None,
    objective: Annotated[
        str, option("--objective", "What to plan for: throughput or latency.")
    ] = "throughput",
    partitioner: Annotated[
        str, option("--partitioner", "How to balance the stages: exact, greedy or even.")
    ] = "exact",
    plan_seconds: Annotated[
        float,
        option("--plan-seconds", "How long to look for better plans of many devices.", min=0.1),
    ] = 10.0,
    codec: Annotated[
        str,
        option(
            "--codec",
            "How activations travel: float32, float16, int8, int8-per-channel; auto: decide.",
        ),
    ] = "auto",
    max_accuracy_drop: Annotated[
        float,
        option("--max-accuracy-drop", "Points of accuracy that --codec auto may cost.", min=0.0),
    ] = 0.5,
    calibration: Annotated[
        str | None,
        option(
            "--calibration",
            "Images to measure that on: a folder or glob, or .npy; labels are used if there.",
        ),
    ] = None,
    what_if: Annotated[
        bool,
        option("--what-if", "Build nothing: say what 1 to N devices, codecs or a purchase give."),
    ] = False,
    weights: options.Weights = "DEFAULT",
    seed: options.Seed = 0,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    model_arg: options.ModelArg = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = "auto",
    context: Annotated[
        int | None,
        option(
            "--context",
            "hf: positions of a sequence, prompt included; default: 1024, or the model's if fewer.",
            min=2,
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        option("--sequences", "hf: sequences that every stage keeps caches for; default 4.", min=1),
    ] = None,
    chunk: Annotated[
        int | None,
        option("--chunk", "hf: tokens of a prompt in one message, at most; default 64.", min=1),
    ] = None,
    quantise: Annotated[
        str | None,
        option("--quantise", "hf: weights as none (float32, the default), int8 or int4."),
    ] = None,
    text: Annotated[
        Path | None,
        option(
            "--text",
            "hf: text to measure the perplexity of quantised weights on; default: a part of this "
            "documentation.",
        ),
    ] = None,
    name: Annotated[str | None, option("--name", "Name of the plan; default: the model's.")] = None,
    out: Annotated[Path, option("--out", "Folder of built plans.")] = options.SHARDS_DIR,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut a model into stages, write their shards, and prove that they equal the whole model."""
    from contract.errors import SettingsError
    from contract.plan import Codec, Replica
    from contract.prediction import Strategy
    from contract.topics import check_name
    from shardline.console import out as stdout
    from shardline.console import print_json, set_up_logging, steps
    from shardline.importing import import_options
    from shardline.plan_table import stages_table, verification_line
    from shardline.verdict_table import print_findings
    from stage.cores import available_cores

    set_up_logging(verbose)
    one_of("--partitioner", partitioner, PARTITIONERS)
    one_of("--objective", objective, OBJECTIVES)
    one_of("--codec", codec, CODECS)
    if strategy is not None:
        one_of("--strategy", strategy, STRATEGIES)
    if stages is not None and cut:
        raise SettingsError("--stages and --cut: choose one")
    if device and devices:
        raise SettingsError("--device and --devices: name the devices, or give a file of them")
    if what_if and devices is None:
        raise SettingsError("--what-if needs --devices FILE: what there is, or what there could be")
    if strategy is not None and devices is None:
        raise SettingsError("--strategy needs --devices FILE: how to use which devices?")
    if model.startswith(LANGUAGE_MODELS):
        from shardline.language_planning import DecoderOptions, plan_decoder

        refuse_for_decoders(
            {
                "--weights": weights != "DEFAULT",
                "--seed": seed != 0,
                "--num-classes": num_classes is not None,
                "--input": input_size is not None,
                "--model-arg": bool(model_arg),
                "--mean": mean is not None,
                "--std": std is not None,
                "--preprocess": preprocess != "auto",
                "--codec": codec not in ("auto", "float32"),
                "--max-accuracy-drop": max_accuracy_drop != 0.5,
                "--calibration": calibration is not None,
                "--what-if": what_if,
            }
        )
        plan_decoder(
            DecoderOptions(
                model=model,
                context=context,
                sequences=sequences,
                chunk=chunk,
                quantise=quantise,
                text=text,
                stages=stages,
                cut=tuple(cut or ()),
                list_cuts=list_cuts,
                batch=batch,
                device=tuple(device or ()),
                devices=devices,
                strategy=strategy,
                objective=objective,
                partitioner=partitioner,
                plan_seconds=plan_seconds,
                name=name or plan_name(model),
                out=out,
                cluster=cluster,
                threads=threads,
                as_json=as_json,
            )
        )
        return
    for flag, given in (
        ("--context", context),
        ("--sequences", sequences),
        ("--chunk", chunk),
        ("--quantise", quantise),
        ("--text", text),
    ):
        if given is not None:
            raise SettingsError(
                f"{flag} is for language models (hf:DIR), {model} is an image model"
            )
    chosen = import_options(
        weights, seed, num_classes, input_size, model_arg, mean, std, preprocess
    )
    from planner.build import build_plan
    from planner.canonical import canonicalise
    from planner.graph import segment_graph
    from planner.importers import import_model
    from planner.request import PlanRequest
    from planner.room import room_for_plan
    from planner.rules import Method, Objective
    from shardline.cuts_table import print_cuts
    from shardline.planning import answer_what_if, calibration_of, site_of_file
    from shardline.what_if_table import what_if_report

    engine_threads = threads or available_cores()
    with steps("planning") as step:
        imported = import_model(model, chosen, step)
        graph = segment_graph(canonicalise(imported, step))
        if not list_cuts:
            request = PlanRequest(
                name=name or plan_name(model),
                out_dir=out,
                num_stages=stages,
                cuts=tuple(cut) if cut else None,
                batch_size=batch,
                threads=engine_threads,
                partitioner=cast(Method, partitioner),
                strategy=cast(Strategy | None, strategy),
                objective=cast(Objective, objective),
                plan_seconds=plan_seconds,
                site=site_of_file(devices, graph, batch, engine_threads) if devices else None,
                devices=tuple((Replica(device=check_name("device", d)),) for d in device)
                if device
                else None,
                codec=cast(Codec, codec),
                max_accuracy_drop=max_accuracy_drop,
                calibration=calibration_of(calibration, graph) if calibration else None,
                cluster=cluster,
            )
            if what_if:
                answers = answer_what_if(graph, request, step)
            else:
                with room_for_plan(request.out_dir, graph.model.weight_bytes):
                    built = build_plan(imported, graph, request, step)
    if list_cuts:
        print_cuts(graph, as_json)
    elif what_if and as_json:
        print_json(answers.model_dump(mode="json"))
    elif what_if:
        stdout.print(what_if_report(answers))
    elif as_json:
        print_json(built.model_dump(mode="json"))
    else:
        stdout.print(stages_table(built))
        stdout.print(verification_line(built), markup=False, soft_wrap=True)
        print_findings(built, stdout)
        stdout.print(f"written to {out / built.name}", soft_wrap=True)
        stdout.print(f"next: shardline publish {out / built.name}", soft_wrap=True)


def refuse_for_decoders(given: dict[str, bool]) -> None:
    """Refuse what means nothing for a language model, rather than ignore it.

    Raises:
        SettingsError: an option was given; says why it cannot be.
    """
    from contract.errors import SettingsError

    for flag, is_given in given.items():
        if is_given:
            raise SettingsError(f"{flag}: {WHY_NOT.get(flag, _FROM_THE_FOLDER)}")


def one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Check a word that an option takes.

    Raises:
        SettingsError: it is none of them.
    """
    from contract.errors import SettingsError

    if value not in allowed:
        raise SettingsError(f"{flag} {value!r}: expected one of {', '.join(allowed)}")


def plan_name(model: str) -> str:
    """``torchvision:resnet18`` -> resnet18, ``dir/net.onnx`` -> net, ``pkg.mod:make`` -> make."""
    model = model.rstrip("/")  # a folder's name may end so
    last = model.removesuffix(".onnx").replace("\\", "/").rpartition("/")[2].rpartition(":")[2]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in last) or "plan"
