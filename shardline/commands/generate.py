"""`shardline generate`: a prompt in, text out as it comes."""

import sys
from typing import Annotated

import typer

from shardline import options
from shardline.options import option


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to go on with, or - for stdin; with --chat the first turn."),
    ] = None,
    chat: Annotated[
        bool, option("--chat", "A dialogue: each line of stdin is a turn, until its end.")
    ] = False,
    max_tokens: Annotated[
        int, option("--max-tokens", "Tokens to write, at most, of each text.", min=1)
    ] = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.SampleTopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.SampleSeed = 0,
    stop: Annotated[
        list[str] | None,
        option("--stop", "Text that ends the answer, and is no part of it; repeatable."),
    ] = None,
    sequences: Annotated[
        int,
        option(
            "--sequences",
            "Texts to write of the prompt, with seeds from --seed on.",
            variable="TEXTS",
            min=1,
            max=256,
        ),
    ] = 1,
    tokenizer: options.TokenizerDir = None,
    window: options.Window = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    ready_timeout: options.ReadyTimeout = 60.0,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Let the running language model go on with a text.

    The text goes to stdout, and what it took to stderr. Ctrl-C frees what the stages keep of it.
    """
    from client.generation.pipeline import TokenPipeline
    from client.settings import ClientSettings, random_client_name
    from contract.decoder import Sampling
    from contract.errors import SettingsError
    from shardline.connecting import connect_to
    from shardline.console import hear_any_bytes, set_up_logging
    from shardline.generating import Writer, converse, open_tokenizer, show_waiting, write_once

    set_up_logging(verbose)
    hear_any_bytes()
    if prompt is None and not chat:
        raise SettingsError("PROMPT: give the text to go on with, - for stdin, or --chat")
    if chat and sequences > 1:
        raise SettingsError("--chat and --sequences: a dialogue has one answer a turn; choose one")
    if not all(stop or ["x"]):
        raise SettingsError("--stop '': expected at least one character")
    if prompt == "-":
        if chat:
            raise SettingsError("--chat reads its turns from stdin anyway: leave out the -")
        prompt = sys.stdin.read()
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    settings = ClientSettings(
        name=connect.address.username or random_client_name(),
        cluster=cluster,
        window=window,
        ready_timeout_s=ready_timeout,
    )
    with TokenPipeline(settings, connect, elsewhere=connect.elsewhere) as pipeline:
        plan = pipeline.open()
        writer = Writer(
            pipeline,
            open_tokenizer(plan, tokenizer),
            Sampling(temperature, top_k, top_p, repetition_penalty, seed),
            max_tokens,
            tuple(stop or ()),
            sequences,
        )
        show_waiting(pipeline)
        if chat:
            converse(writer, prompt, as_json)
        else:
            assert prompt is not None
            write_once(writer, prompt, as_json)
