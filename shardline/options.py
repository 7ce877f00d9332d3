"""Every option of every command, once: its flag, its environment variable, its help.

The environment variable of `--some-option` is SHARDLINE_SOME_OPTION; a flag wins over the
environment, the environment over `.env`. docs/settings.md has a row for each (a test compares).
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from contract import topics
from contract.errors import SettingsError


def option(
    flag: str,
    help_text: str,
    *,
    short: str | None = None,
    variable: str | None = None,
    **extra: Any,
) -> Any:
    """A typer option with the environment variable that follows from its flag.

    ``variable`` names another one, where two commands give one flag two meanings.
    """
    name = variable or flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    flags = (flag,) if short is None else (flag, short)
    return typer.Option(
        *flags, envvar=f"SHARDLINE_{name}", help=help_text, show_envvar=False, **extra
    )


Broker = Annotated[str, option("--broker", "Address of the broker: host or host:port.")]
Cluster = Annotated[str, option("--cluster", "Name of the cluster: devices of one see no other.")]
Username = Annotated[
    str | None,
    option("--username", "User name at the broker; also this process's name, but for a stage."),
]
PasswordFile = Annotated[
    Path | None,
    option("--password-file", "File that holds the password (or set SHARDLINE_PASSWORD)."),
]
CaFile = Annotated[
    Path | None,
    option("--ca-file", "Certificate of the CA that vouches for the broker; switches TLS on."),
]
CertFile = Annotated[
    Path | None,
    option("--cert-file", "Certificate that says who we are; its common name is the user name."),
]
KeyFile = Annotated[Path | None, option("--key-file", "Private key of --cert-file.")]
Verbose = Annotated[bool, option("--verbose", "Log what happens, on stderr.", short="-v")]
Json = Annotated[bool, option("--json", "Print one JSON document on stdout.")]
Threads = Annotated[
    int, option("--threads", "Threads of the engine (0: one for each core).", min=0, max=256)
]
Engine = Annotated[str, option("--engine", "What executes a shard: onnxruntime, torch, identity.")]
Prepack = Annotated[
    bool,
    option(
        "--prepack/--no-prepack",
        "Let the engine keep weights reordered: faster, more memory (see docs/settings.md).",
    ),
]
ReadyTimeout = Annotated[
    float, option("--ready-timeout", "Seconds to wait for a plan and its devices.", min=0.1)
]
BatchSize = Annotated[int, option("--batch", "Images in a batch, at most.", min=1, max=4096)]
Window = Annotated[
    int | None,
    option("--window", "Batches in flight; default: as many as the plan needs.", min=1),
]
TopK = Annotated[int, option("--top-k", "Classes listed for each image.", min=1)]

# A model and how to import it: the same for `plan`, `demo` and `infer --whole`.
Weights = Annotated[
    str,
    option(
        "--weights", "DEFAULT (torchvision's download), a .safetensors or .pth file, or random."
    ),
]
Seed = Annotated[int, option("--seed", "Seed of random weights and of calibration.")]
NumClasses = Annotated[
    int | None, option("--num-classes", "Give the model another number of classes.", min=1)
]
InputSize = Annotated[
    str | None, option("--input", "Another input size, as 32x32 (height x width).")
]
ModelArg = Annotated[
    list[str] | None,
    option("--model-arg", "NAME=VALUE for the model's builder, as width_mult=0.5; repeatable."),
]
Mean = Annotated[
    str | None, option("--mean", "Normalisation: mean of each channel, as 0.485,0.456,0.406.")
]
Std = Annotated[
    str | None, option("--std", "Normalisation: deviation of each channel, as 0.229,0.224,0.225.")
]
Preprocess = Annotated[
    str,
    option("--preprocess", "image: uint8 pictures in; none: the model's own tensor; auto: decide."),
]

# How a language model chooses its tokens.
Temperature = Annotated[
    float, option("--temperature", "0 takes the likeliest token; above, chance.", min=0, max=100)
]
SampleTopK = Annotated[
    int,
    option(
        "--top-k",
        "Choose among so many of the likeliest (0: all).",
        variable="SAMPLE_TOP_K",
        min=0,
        max=2**53,
    ),
]
TopP = Annotated[
    float,
    option("--top-p", "Choose among the likeliest that make up this share.", min=0.001, max=1),
]
RepetitionPenalty = Annotated[
    float,
    option("--repetition-penalty", "Above 1: tokens that were there are less likely.", min=0.01),
]
SampleSeed = Annotated[
    int, option("--seed", "Seed of the chance.", variable="SAMPLE_SEED", min=0, max=2**52)
]
TokenizerDir = Annotated[
    Path | None,
    option("--tokenizer", "Folder of the tokenizer; default: shards/built/PLAN/tokenizer."),
]

FleetFile = Annotated[Path, option("--fleet", "File that names the machines of the cluster.")]

DEFAULT_BROKER = "127.0.0.1:1883"
DEFAULT_CLUSTER = topics.DEFAULT_CLUSTER
SHARDS_DIR = Path("shards/built")
FLEET_FILE = Path("fleet/fleet.yaml")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``32x48`` as (height, width).

    Raises:
        SettingsError: not such a text.
    """
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
        raise SettingsError(f"--input {text!r}: expected HEIGHTxWIDTH, for example 32x32")
    if not (int(height) and int(width)):
        raise SettingsError(f"--input {text!r}: height and width must be at least 1")
    return int(height), int(width)


def parse_floats(flag: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers.

    Raises:
        SettingsError: not such a text.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"{flag} {text!r}: expected numbers separated by commas, for example 0.5,0.5,0.5"
        ) from None


def parse_model_args(pairs: list[str] | None) -> dict[str, int | float | bool | str]:
    """``["width_mult=0.5"]`` as {"width_mult": 0.5}; values become numbers or booleans if they can.

    Raises:
        SettingsError: an entry without ``=``.
    """
    arguments: dict[str, int | float | bool | str] = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise SettingsError(f"--model-arg {pair!r}: expected NAME=VALUE, as width_mult=0.5")
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
