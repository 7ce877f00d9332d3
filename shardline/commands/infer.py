"""`shardline infer`: inputs in, labelled results out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from client.journal import Journal


def run(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder or glob of pictures, cifar10[:DIR], a .npy file, or dummy:N."
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            "--out", "Write one row an image: .jsonl, .csv, or - for stdout.", variable="RESULTS"
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        option(
            "--journal", "Write the run down here; the same command again goes on where it was."
        ),
    ] = None,
    journal_sync: Annotated[
        str,
        option(
            "--journal-sync", "normal survives this process's death; full a power cut at any time."
        ),
    ] = "normal",
    local: Annotated[
        Path | None,
        option("--local", "Run this plan's stages in threads here, without a broker."),
    ] = None,
    whole: Annotated[
        str | None, option("--whole", "Run this whole MODEL here: the single-device baseline.")
    ] = None,
    batch: Annotated[
        int | None, option("--batch", "Images in a batch; default: what the plan says.", min=1)
    ] = None,
    window: options.Window = None,
    top_k: options.TopK = 5,
    batch_timeout: Annotated[
        float | None,
        option(
            "--batch-timeout", "Give a batch up after so many seconds; default: never.", min=0.001
        ),
    ] = None,
    traces: Annotated[
        bool,
        option("--traces/--no-traces", "Publish where each batch's time went (`shardline trace`)."),
    ] = True,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    ready_timeout: options.ReadyTimeout = 60.0,
    engine: options.Engine = "onnxruntime",
    threads: options.Threads = 1,
    weights: options.Weights = "DEFAULT",
    seed: options.Seed = 0,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    model_arg: options.ModelArg = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = "auto",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Feed inputs to the running pipeline and collect the answers.

    Ends with exit code 0 only if every input that could be read has exactly one result.
    """
    from contextlib import ExitStack

    from client.pipeline import Pipeline
    from client.settings import ClientSettings, random_client_name
    from contract.errors import SettingsError
    from contract.plan import load_plan
    from shardline.connecting import connect_to
    from shardline.console import set_up_logging
    from shardline.inference import PipelineFeeder, run_inference
    from stage.cores import available_cores

    set_up_logging(verbose)
    if local is not None and whole is not None:
        raise SettingsError("--local and --whole: choose one")
    if journal is not None and whole is not None:
        raise SettingsError("--journal and --whole: a whole model here sends nothing; choose one")
    with ExitStack() as stack:
        written = None if journal is None else stack.enter_context(_open(journal, journal_sync))
        if written is not None:
            from shardline.journalled import JournalledRun

            journalled = JournalledRun(written, source, batch, out, top_k, as_json)
            if journalled.is_finished():
                journalled.show_finished()
                return
        if whole is not None:
            from shardline.importing import import_options
            from shardline.whole import WholeFeeder

            chosen = import_options(
                weights, seed, num_classes, input_size, model_arg, mean, std, preprocess
            )
            whole_feeder = WholeFeeder(whole, chosen, threads or available_cores(), batch or 1)
            run_inference(whole_feeder, source, batch, out, top_k, as_json)
            return
        if local is not None:
            from shardline.local import local_pipeline

            plan = load_plan(local)
            pipeline = stack.enter_context(
                local_pipeline(
                    plan,
                    local if local.is_dir() else local.parent,
                    engine=engine,
                    threads=threads or available_cores(),
                    window=window,
                    journal=written,
                )
            )
        else:
            connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
            user = connect.address.username
            name = user or random_client_name()
            settings = ClientSettings(
                name=name if written is None else written.client_name(user),
                cluster=cluster,
                window=window,
                ready_timeout_s=ready_timeout,
                batch_timeout_s=batch_timeout,
                traces=traces,
            )
            pipeline = stack.enter_context(
                Pipeline(settings, connect, elsewhere=connect.elsewhere, journal=written)
            )
            pipeline.open()
        if written is None:
            run_inference(PipelineFeeder(pipeline), source, batch, out, top_k, as_json)
        else:
            journalled.run(pipeline)


def _open(path: Path, synchronous: str) -> "Journal":
    from client.journal import Journal
    from contract.errors import SettingsError

    if synchronous not in ("normal", "full"):
        raise SettingsError(f"--journal-sync {synchronous!r}: expected normal or full")
    return Journal(path, "full" if synchronous == "full" else "normal")
