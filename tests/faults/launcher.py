"""Runs the ordinary `shardline` command with the fault points, and patches, of the harness in it.

    python -m tests.faults.launcher '{"name": "pi-1", "folder": "…", "patches": ["slow:5"]}' stage …

Nothing of this is in the product: the launcher wraps the product's own functions in its process and
then calls the command's own entry point.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from shardline.__main__ import main as shardline
from tests.faults import client_patches, stage_patches
from tests.faults.patching import Context, apply
from tests.faults.triggers import Triggers

_FOR_EVER = ExitStack()


def main() -> None:
    told = json.loads(sys.argv[1])
    context = Context(told["name"], Triggers(Path(told["folder"])), _FOR_EVER)
    if sys.argv[2] == "stage":
        stage_patches.watch(context)
    if not told["full_length"]:
        client_patches.scale_times(context)
    apply(context, told["patches"])
    sys.argv = ["shardline", *sys.argv[2:]]
    shardline()


if __name__ == "__main__":
    main()
