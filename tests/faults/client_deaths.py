"""Row 15: the client's process is killed, again and again, and started on its journal."""

import json
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

from client.results import top_classes
from tests.faults.known_answers import IMAGES, answer, numbered_batches
from tests.faults.pipeline_under_test import CLUSTER, Setup, Site
from tests.faults.processes import Child
from tests.faults.row import Figures, Row, Trial

BATCHES = 150
KILLS = 2
RUN_LIMIT_S = 90.0
TOP = 4


def client_killed(site: Site, trial: Trial) -> Figures:
    """`shardline infer --journal`, SIGKILL twice, and a third start that ends by itself."""
    figures = Figures(batches=BATCHES * IMAGES)
    started = time.monotonic()
    images = np.concatenate(
        [b.tensors["image"] for b in islice(numbered_batches(trial.seed), BATCHES)]
    )
    source = site.folder / f"images-{trial.seed}.npy"
    np.save(source, images)
    results: list[Path] = []
    computed_before = len(site.computes())
    for start in range(KILLS + 1):
        out = site.folder / f"results-{trial.seed}-{start if trial.is_control else 0}.jsonl"
        results.append(out)
        child = Child(_command(site, trial, source, out), site.folder / "infer.log")
        computed = len(site.computes())
        child.start()
        if start == KILLS:
            figures.require(_ends_well(child), f"it ended with {child.words()[-200:]!r}")
            break
        _wait_for_work(site, child, computed + trial.random.randint(5, 2 * BATCHES))
        if child.is_running:
            figures.injected += 1
        child.kill()
    _judge(figures, images, [out for out in dict.fromkeys(results) if out.exists()])
    lines = site.computes()[computed_before:]
    figures.computed_twice = len(lines) - 3 * BATCHES
    figures.stage_bytes = max(stage.peak_bytes for stage in site.stages.values())
    figures.broker_bytes = site.broker.peak_bytes
    figures.seconds = time.monotonic() - started
    if not figures.injected:
        figures.error = "the fault did not strike"
    return figures


def _command(site: Site, trial: Trial, source: Path, out: Path) -> list[str]:
    journal = site.folder / f"journal-{trial.seed}.db"
    return [
        *(sys.executable, "-m", "tests.faults.launcher", site.told("infer", [])),
        *("infer", str(source), "--cluster", CLUSTER, "--broker", str(site.address())),
        *("--batch", str(IMAGES), "--window", str(site.setup.window), "--top-k", str(TOP)),
        *("--out", str(out)),
        *(() if trial.is_control else ("--journal", str(journal))),
    ]


def _wait_for_work(site: Site, child: Child, lines: int) -> None:
    deadline = time.monotonic() + RUN_LIMIT_S
    while len(site.computes()) < lines and child.is_running and time.monotonic() < deadline:
        time.sleep(0.005)


def _ends_well(child: Child) -> bool:
    deadline = time.monotonic() + RUN_LIMIT_S
    while child.is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    ended = not child.is_running
    child.kill()
    return ended and child.process is not None and child.process.returncode == 0


def _judge(figures: Figures, images: np.ndarray, files: list[Path]) -> None:
    """Each image once, in order, with its own answer."""
    rows = []
    for file in files:
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # what a process that was killed had half written
    answers = answer(images, 0)
    seen: Counter[int] = Counter()
    for row in rows:
        index = int("".join(c for c in row["image"].rpartition("[")[2] if c.isdigit()))
        seen[index] += 1
        expected = top_classes(answers[index], TOP)
        got = [(entry["class"], entry["score"]) for entry in row.get("top", [])]
        scores = np.allclose([s for _, s in got], [s for _, s in expected], atol=1e-4)
        if len(got) != len(expected) or not scores or got[0][0] != expected[0][0]:
            figures.wrong += 1
    figures.results = len(rows)
    figures.missing = len(images) - len(seen)
    figures.duplicates = sum(seen.values()) - len(seen)


ROWS = (
    Row(
        15,
        "the client is killed in the middle of a run, twice",
        "`shardline infer --journal` gets SIGKILL after a random number of batches; started again",
        "the journal: each batch has one recorded result, open ones are sent again",
        "no journal: each start does everything again, and writes second results",
        lambda _is_control: Setup(slow_ms=3.0),
        client_killed,
        harm="duplicates",
        seconds=6.0,
    ),
)
