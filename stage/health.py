"""Is the device agent alive? `python -m stage.health` is the container's health check.

The agent writes a heartbeat once a second; this reads it. Only the standard library, and nothing
else of ours: on a Pi it runs every half minute beside the work. Times are of the monotonic clock,
which every process of a machine shares and no time server turns back.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HEARTBEAT_VARIABLE = "SHARDLINE_HEARTBEAT"
STALE_S = 15.0
"""A heartbeat this old means that the process hangs, is starved, or has ended."""
NO_BROKER_S = 60.0
"""A broker that restarts is away for less."""


def write_heartbeat(path: Path, connected: bool, away_s: float, shard: str) -> None:
    """Replace the heartbeat, whole."""
    partial = path.with_name(path.name + ".partial")
    beat = {
        "at_monotonic_s": time.monotonic(),
        "connected": connected,
        "away_s": away_s,
        "shard": shard,
    }
    partial.write_text(json.dumps(beat))
    partial.replace(path)


def complaint(heartbeat: Any, now_s: float) -> str | None:
    """What is wrong, or None. ``heartbeat`` is the parsed file, whatever it holds."""
    try:
        age_s = now_s - float(heartbeat["at_monotonic_s"])
        connected, away_s = bool(heartbeat["connected"]), float(heartbeat["away_s"])
        shard = str(heartbeat["shard"])
    except (KeyError, TypeError, ValueError):
        return "the heartbeat file is not the agent's"
    if not 0 <= age_s <= STALE_S:  # below 0: of before the machine was started again
        return f"the agent's last heartbeat is {age_s:.0f} s old: it hangs or has ended"
    if not connected and away_s > NO_BROKER_S:
        return f"no broker for {away_s:.0f} s: see SHARDLINE_BROKER and the broker's log"
    if shard == "failed":
        return "the shard cannot be loaded: see this container's log"
    return None


def main() -> int:
    """0 when healthy; otherwise 1, with a line that `docker inspect` shows."""
    path = os.environ.get(HEARTBEAT_VARIABLE)
    if not path:
        print(f"{HEARTBEAT_VARIABLE} is not set: no heartbeat is written")  # noqa: T201
        return 1
    try:
        heartbeat = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        print(f"no heartbeat yet: {error}")  # noqa: T201
        return 1
    found = complaint(heartbeat, time.monotonic())
    print(found or f"ok: shard {heartbeat['shard']}")  # noqa: T201
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
