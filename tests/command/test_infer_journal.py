"""`infer --journal` and `journal` as a person uses them: processes that are killed, files after."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL

import numpy as np
import pytest

from broker.embedded import EmbeddedBroker
from broker.transport import Connect
from client.journal import Journal
from client.journal_reader import JournalReader
from contract.activation import Activation
from contract.errors import ExitCode, JournalError
from contract.plan import Plan
from tests.conftest import Run, StartStage, eventually
from tests.pipeline.fakes import FakeDevice, publish_plan
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan, tiny_answer

ROOT = Path(__file__).parent.parent.parent
ROWS = 8 * 400
NAMES = ("zero", "one", "two", "three")


@pytest.fixture
def array(tmp_path: Path) -> np.ndarray:
    generator = np.random.default_rng(5)
    array = generator.integers(0, 256, (ROWS, 1, HEIGHT, WIDTH), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", array)
    return array


class Fleet:
    """Three devices in threads, and `shardline infer --journal` as a process."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, cluster: str, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.journal = folder / "run.journal"
        self.reach = ["--broker", str(broker.address), "--cluster", cluster]
        self._command = ["infer", "rows.npy", "--journal", "run.journal", "--out", "out.jsonl"]

    def start(self, code: str = "", *more: str, out: int = DEVNULL) -> subprocess.Popen[bytes]:
        """``code`` runs in the process before the command: how a test kills it at a point."""
        program = f"{code}\nfrom shardline.__main__ import main\nmain()"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHARDLINE_")}
        return subprocess.Popen(
            [sys.executable, "-c", program, *self._command, *self.reach, *more],
            cwd=self.folder,
            env={**clean, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT if "--json" not in more else DEVNULL,  # a warning is no JSON
        )

    def finish(self, *more: str) -> str:
        process = self.start("", *more, out=subprocess.PIPE)
        try:
            text = process.communicate(timeout=120)[0].decode()
        finally:
            process.kill()
        assert process.returncode == 0, text
        return text

    def done(self) -> int:
        """Batches that have a result in the journal."""
        try:
            with JournalReader(self.journal) as reader:
                return reader.counts().done
        except JournalError:
            return 0  # it is being begun

    def rows(self) -> list[dict[str, object]]:
        lines = (self.folder / "out.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def fleet(
    tmp_path: Path,
    array: np.ndarray,
    shared_broker: EmbeddedBroker,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
) -> Fleet:
    devices = tuple(f"pi-{index}-{unique}" for index in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    for device in devices:
        start_stage(device, tmp_path / "tiny")
    publish_plan(connect, plan, cluster)
    return Fleet(tmp_path, shared_broker, cluster, plan)


def each_image_once(fleet: Fleet, array: np.ndarray) -> None:
    rows = fleet.rows()
    assert [row["image"] for row in rows] == [f"rows.npy[{i}]" for i in range(ROWS)]
    best = [row["top"][0]["label"] for row in rows]  # type: ignore[index]
    assert best == [NAMES[index] for index in tiny_answer(array).argmax(axis=1)]


def test_a_run_that_is_killed_again_and_again_gives_each_image_once(
    fleet: Fleet, array: np.ndarray
) -> None:
    for kill_at in (1, 60, 150):
        process = fleet.start()
        while fleet.done() < kill_at and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
    before = fleet.done()
    assert 150 <= before < 400
    assert not (fleet.folder / "out.jsonl").exists()
    summary = json.loads(fleet.finish("--json"))
    each_image_once(fleet, array)
    assert summary["images"] == ROWS
    assert 8 * before <= summary["resumed_images"] < ROWS  # what waited at the broker, too
    ledger = summary["ledger"]
    assert (ledger["submitted"], ledger["delivered"], ledger["lost"]) == (400, 400, 0)


DIE_AFTER_COMMIT = """
import os, signal
from client.journal import Journal
commit = Journal.commit
def commit_and_die(self):
    commit(self)
    (done,) = self.database.execute("SELECT count(*) FROM results").fetchone()
    if done >= 100:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.commit = commit_and_die
"""
DIE_BEFORE_COMMIT = """
import os, signal
from client.journal import Journal
commit, seen = Journal.commit, []
def die_instead(self):
    seen.extend(self._results)
    if len(seen) >= 100 and self._results:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self)
Journal.commit = die_instead
"""
DIE_AT_AN_ACKNOWLEDGEMENT = """
import os, signal
from broker.transport import AckToken
use, used = AckToken.use, []
def use_and_die(self):
    use(self)
    used.append(1)
    if len(used) >= 100:
        os.kill(os.getpid(), signal.SIGKILL)
AckToken.use = use_and_die
"""


@pytest.mark.parametrize("code", [DIE_AFTER_COMMIT, DIE_BEFORE_COMMIT, DIE_AT_AN_ACKNOWLEDGEMENT])
def test_a_death_at_each_side_of_the_commit_loses_and_doubles_nothing(
    fleet: Fleet, array: np.ndarray, code: str
) -> None:
    process = fleet.start(code)
    process.wait(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert 0 < fleet.done() < 400
    fleet.finish()
    each_image_once(fleet, array)


def test_a_finished_run_only_makes_its_file_again(fleet: Fleet, array: np.ndarray) -> None:
    fleet.finish()
    first = (fleet.folder / "out.jsonl").read_bytes()
    (fleet.folder / "out.jsonl").unlink()
    fleet.reach = ["--broker", "127.0.0.1:1"]  # nobody is there
    told = fleet.finish()
    assert (fleet.folder / "out.jsonl").read_bytes() == first
    assert f"{ROWS:,} by earlier runs" in told
    each_image_once(fleet, array)


def refused(done, *words: str) -> None:  # type: ignore[no-untyped-def]
    assert done.code == ExitCode.JOURNAL, done
    assert "Traceback" not in done.err
    for word in words:
        assert word in " ".join(done.err.split())


@pytest.fixture
def local(run: Run, tmp_path: Path) -> Callable[..., object]:
    """`infer --local` with a journal: quick, and in this process."""
    make_tiny_plan(tmp_path, devices=())

    def infer(source: str, *more: str) -> object:
        return run("infer", source, "--local", tmp_path / "tiny", "--journal", "j", *more)

    return infer


def test_another_source_or_content_is_refused(
    local: Callable[..., object], array: np.ndarray, tmp_path: Path
) -> None:
    assert local("rows.npy").code == 0  # type: ignore[attr-defined]
    refused(local("dummy:5"), "rows.npy", "5 made-up inputs", "another journal file")
    np.save(tmp_path / "rows.npy", array[:-1])
    refused(local("rows.npy"), "3200", "3199")


def test_a_journal_that_is_in_use_is_refused(local: Callable[..., object], tmp_path: Path) -> None:
    with Journal(tmp_path / "j"):
        refused(local("dummy:5"), "another process is using it")


def test_a_journal_needs_a_pipeline(local: Callable[..., object], run: Run) -> None:
    done = run("infer", "dummy:5", "--whole", "torchvision:resnet18", "--journal", "j")
    assert done.code == ExitCode.SETTINGS
    done = local("dummy:5", "--journal-sync", "sometimes")  # type: ignore[assignment]
    assert done.code == ExitCode.SETTINGS
    assert "normal or full" in done.err


def test_pictures_that_cannot_be_read_leave_no_gap(
    local: Callable[..., object], run: Run, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for index in range(30):
        path = tmp_path / "pictures" / f"{index:02}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), index, np.uint8)).save(path)
        if index % 7 == 3:
            path.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    done = local("pictures", "--out", "out.csv", "--json", "--journal-sync", "full")
    assert done.code == 0, done  # type: ignore[attr-defined]
    summary = json.loads(done.out)  # type: ignore[attr-defined]
    assert (summary["images"], summary["skipped"]) == (26, 4)
    again = json.loads(local("pictures", "--out", "out.csv", "--json").out)  # type: ignore[attr-defined]
    assert (again["images"], again["skipped"], again["resumed_images"]) == (26, 4, 26)


# The dead


@pytest.fixture
def swallowing(
    tmp_path: Path, connect: Connect, cluster: str, unique: str
) -> Iterator[list[FakeDevice]]:
    """Three devices, the last of which does not answer the batches in ``swallows``."""
    devices = tuple(f"pi-{index}-{unique}" for index in range(3))
    plan = make_tiny_plan(tmp_path, devices=devices, cluster=cluster)
    publish_plan(connect, plan, cluster)

    def behave(fake: FakeDevice, activation: Activation) -> None:
        if activation.header.batch_id.seq not in getattr(fake, "swallows", ()):
            fake.answer(activation)

    fakes = [FakeDevice(connect, cluster, plan, device, behave) for device in devices]
    yield fakes
    for fake in fakes:
        fake.close()


def test_dead_batches_are_listed_exported_and_sent_again(
    run: Run,
    swallowing: list[FakeDevice],
    shared_broker: EmbeddedBroker,
    cluster: str,
    tmp_path: Path,
) -> None:
    swallowing[2].swallows = {1, 3}  # type: ignore[attr-defined]
    infer = ["infer", "dummy:30", "--batch", 5, "--journal", "j", "--out", "out.jsonl"]
    infer += ["--broker", shared_broker.address, "--cluster", cluster, "--batch-timeout", 3]
    done = run(*infer)
    assert done.code == ExitCode.DELIVERY
    assert "journal redrive j" in " ".join(done.err.split())
    listed = json.loads(run("journal", "list", "j", "--json").out)
    assert listed["states"] == {"new": 0, "sent": 0, "done": 4, "dead": 2}
    assert [(d["seq"], d["reason"]) for d in listed["dead"]] == [(1, "timeout"), (3, "timeout")]
    assert listed["dead"][0]["images"] == [f"dummy/{i}" for i in range(5, 10)]
    assert listed["finished"]
    table = run("journal", "list", "j").out
    assert "4 done, 2 dead" in table
    assert "dummy/5 and 4 more" in table
    exported = run("journal", "export", "j", "--dead").out.splitlines()
    assert [json.loads(line)["image"] for line in exported[::5]] == ["dummy/5", "dummy/15"]
    assert len(run("journal", "export", "j").out.splitlines()) == 30

    swallowing[2].swallows = set()  # type: ignore[attr-defined]
    assert run("journal", "redrive", "j", "--seq", 3).code == 0
    assert run("journal", "redrive", "j").out.startswith("batch 1 will be sent again as batch 7")
    refused(run("journal", "redrive", "j", "--seq", 0), "batch 0 is not dead")
    done = run(*infer, "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["resumed_images"] == 20
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"dummy/{i}" for i in range(30)]
    assert all("top" in row for row in rows)
    assert run("journal", "redrive", "j").out == "no batch is dead\n"


@pytest.mark.parametrize("command", ["list", "export", "redrive"])
def test_a_journal_that_is_not_there_is_told(run: Run, command: str) -> None:
    refused(run("journal", command, "nowhere"), "no such file")


def test_a_file_that_is_no_journal_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "j").write_text("nothing of the kind " * 100)
    for command in ("list", "export", "redrive"):
        refused(run("journal", command, "j"), "no journal")


def test_a_running_journal_can_be_listed(fleet: Fleet, run: Run) -> None:
    process = fleet.start()
    eventually(lambda: fleet.done() > 20, "it runs")
    listed = run("journal", "list", fleet.journal, "--json")
    assert listed.code == 0, listed
    exported = run("journal", "export", fleet.journal, "--out", "so-far.csv")
    assert exported.code == 0, exported
    process.wait(timeout=120)
    assert process.returncode == 0
