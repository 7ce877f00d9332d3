"""`shardline serve`: the running language model behind an OpenAI-compatible HTTP interface."""

import signal
from pathlib import Path
from typing import Annotated

from shardline import options
from shardline.options import option

READY_TIMEOUT_S = 5.0
"""Of one try to find plan and devices: the server answers meanwhile, and tries again."""


def run(
    host: Annotated[
        str, option("--host", "Address to serve at.", variable="SERVE_HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        option(
            "--port", "Port to serve at (0: any free one).", variable="SERVE_PORT", min=0, max=65535
        ),
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        option("--api-key-file", "Let in only who knows the key in this file."),
    ] = None,
    tokenizer: options.TokenizerDir = None,
    window: options.Window = None,
    broker: options.Broker = options.DEFAULT_BROKER,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Serve the running language model to OpenAI's clients, until SIGTERM or Ctrl-C."""
    from shardline.connecting import connect_to
    from shardline.console import err, set_up_logging
    from shardline.generating import check_packages, open_tokenizer

    check_packages("jinja2", "starlette", "tokenizers", "uvicorn")
    from client.dashboard.serve import Bind, listen
    from client.generation.pipeline import TokenPipeline
    from client.serving.engine import Engine
    from client.serving.guard import read_key
    from client.serving.serve import ApiServer
    from client.settings import ClientSettings, random_client_name

    set_up_logging(verbose)
    key = None if api_key_file is None else read_key(api_key_file)
    connect = connect_to(broker, username, password_file, ca_file, cert_file, key_file)
    name = connect.address.username or random_client_name()
    settings = ClientSettings(
        name=name, cluster=cluster, window=window, ready_timeout_s=READY_TIMEOUT_S
    )
    where = Bind(host, port)
    with (
        listen(where, "--host and --port") as listener,
        Engine(
            lambda: TokenPipeline(settings, connect, elsewhere=connect.elsewhere),
            lambda plan: open_tokenizer(plan, tokenizer),
        ) as engine,
    ):
        server = ApiServer(engine, listener, key)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/v1"
        err.print(f"serving cluster {cluster} at {url}", markup=False, soft_wrap=True)
        if key is None and not where.is_loopback:
            err.print(
                f"warning: whoever reaches {host} may use the model; --api-key-file FILE asks them "
                "for a key",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        server.run()
