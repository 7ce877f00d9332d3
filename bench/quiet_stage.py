"""The `shardline` command, with nothing measured: what bench.overhead compares the ordinary with.

    python -m bench.quiet_stage stage …

It replaces the stage's pause between two metrics in its own process; the product has no such
option.
"""

import threading
from unittest import mock

import stage.pulse
from shardline.__main__ import main

if __name__ == "__main__":
    with mock.patch.object(stage.pulse, "METRICS_INTERVAL_S", threading.TIMEOUT_MAX / 4):
        main()
