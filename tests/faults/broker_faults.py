"""Rows 4 to 7: the broker goes, with or without what it had, and comes back."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults.feed import Feed
from tests.faults.pipeline_under_test import ALL, Setup, Site
from tests.faults.processes import ROOT
from tests.faults.row import Figures, Row, Trial

ALARM_LIMIT_S = 10.0
DISK_BYTES = 3_000_000
DATABASE = "mosquitto.db"
FILL_BYTES = 100_000


def persistent(text: str, folder: Path) -> str:
    """A broker that writes its sessions down at its end, and on SIGUSR1."""
    return text.replace(
        "persistence false", f"persistence true\npersistence_location {folder}/data/"
    )


def forgetful(text: str, _folder: Path) -> str:
    return text


def setup(is_control: bool, **settings: Any) -> Setup:
    """The control sends nothing twice, and its broker writes nothing down."""
    if is_control:
        settings |= {"client_patches": ("no_retry",), "patience_s": 3.0, "conf": forgetful}
        settings["stage_patches"] = {ALL: ("no_session",)}
    return Setup(**settings)


def _pause(trial: Trial) -> None:
    time.sleep(trial.random.uniform(0.0, 0.5))


def restarted(site: Site, trial: Trial) -> Figures:
    """SIGTERM: it saves, and starts again."""

    def inject() -> None:
        site.broker.end()
        feed.struck()
        _pause(trial)
        site.start_broker()

    feed = Feed(site, trial, inject)
    figures = feed.run()
    site.publish()
    return figures


def killed_and_wiped(site: Site, trial: Trial) -> Figures:
    """SIGKILL, and nothing on disk: sessions, queues and retained messages are gone."""

    def inject() -> None:
        site.broker.kill()
        feed.struck()
        _pause(trial)
        site.start_broker()

    feed = Feed(site, trial, inject)
    figures = feed.run()
    site.publish()  # the planner's: a stage that starts later needs it
    return figures


def database_damaged(site: Site, trial: Trial) -> Figures:
    """What the broker saved a moment ago is cut in half while it is away."""
    database = site.folder / "data" / DATABASE

    def inject() -> None:
        site.broker.send(signal.SIGUSR1)  # save now
        deadline = time.monotonic() + 5
        while not database.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        site.broker.kill()
        size = database.stat().st_size
        if trial.seed % 2:
            os.truncate(database, max(1, size // 2))
        else:
            damaged = bytearray(database.read_bytes())
            damaged[: min(64, size)] = trial.random.randbytes(min(64, size))
            database.write_bytes(damaged)
        feed.struck()
        _pause(trial)
        try:
            site.start_broker()
        except RuntimeError as error:
            feed.figures.problems.append(f"the broker stays away: {str(error)[-120:]}")

    feed = Feed(site, trial, inject)
    figures = feed.run()
    if site.broker.is_running:
        site.publish()
    else:
        site.is_broken = True
    return figures


def product_entry_point(folder: Path) -> Path:
    """The broker image's own entry point, with the paths of this machine."""
    text = (ROOT / "images" / "broker" / "entrypoint").read_text()
    for path, ours in (
        ("config=/mosquitto/config/mosquitto.conf", f"config={folder}/mosquitto.conf"),
        ("data=/var/lib/mosquitto", f"data={folder}/data"),
        ("'log_dest stderr' ", "'log_dest stderr' 'user root' "),  # who writes the file here
    ):
        assert path in text
        text = text.replace(path, ours)
    file = folder / "entrypoint"
    file.write_text(text)
    file.chmod(0o755)
    return file


def small_disk(site: Site, stack: ExitStack) -> None:
    """A disk of 3 MB for what the broker saves: it opens its file anew each time."""
    data = str(site.folder / "data")
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", data], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", data], check=False)


def disk_full(site: Site, trial: Trial) -> Figures:
    """The broker saves onto a full disk, is killed, and starts with what it could write."""
    data = site.folder / "data"
    filler = data / "filler"

    def inject() -> None:
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(bytes(FILL_BYTES))
                    file.flush()
            except OSError:
                feed.struck()
        said = len(site.broker.words())
        site.broker.send(signal.SIGUSR1)
        end = time.monotonic() + ALARM_LIMIT_S
        while "error" not in site.broker.words()[said:].lower() and time.monotonic() < end:
            time.sleep(0.05)
        feed.figures.require(site.broker.is_running, "a full disk ended the broker")
        feed.figures.require(time.monotonic() < end, "nobody was told that the disk is full")
        site.broker.kill()
        filler.unlink()
        for file in data.glob(f"{DATABASE}*"):
            file.unlink()  # what half a save left is row 6
        site.start_broker()

    feed = Feed(site, trial, inject)
    try:
        figures = feed.run()
    finally:
        filler.unlink(missing_ok=True)
    site.publish()
    return figures


def lacks_mount() -> str:
    """Whether a file system can be mounted here."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "needs root, to mount a small disk"
    return ""


ROWS = (
    Row(
        4,
        "the broker is restarted in order",
        "SIGTERM, started again after up to 0.5 s",
        "its persistence; all open batches are sent again when a session is lost",
        "no persistence, no sessions, no retry: batches are missing",
        lambda is_control: setup(is_control, **({} if is_control else {"conf": persistent})),
        restarted,
    ),
    Row(
        5,
        "the broker is killed and has nothing on disk",
        "SIGKILL, started again after up to 0.5 s",
        "all open batches are sent again when a session is lost; the client's retry",
        "no retry: batches are missing",
        setup,
        killed_and_wiped,
    ),
    Row(
        6,
        "the broker's database is truncated or overwritten",
        "SIGUSR1 (save), SIGKILL, half of the file cut off or its head overwritten, started again",
        "the image's entry point moves a file aside that Mosquitto cannot read; as row 5",
        "Mosquitto started without the entry point: it stays away",
        lambda is_control: Setup(
            conf=persistent,
            entry_point=None if is_control else product_entry_point,
            patience_s=3.0 if is_control else 30.0,
        ),
        database_damaged,
        is_timed=False,
    ),
    Row(
        7,
        "the broker's disk is full",
        "a tmpfs of 3 MB filled up, SIGUSR1 (save), SIGKILL, started again empty",
        "the client's retry; Mosquitto says so in its log",
        "no retry: batches are missing",
        lambda is_control: Setup(
            conf=persistent,
            furnish=small_disk,
            client_patches=("no_retry",) if is_control else (),
            stage_patches={ALL: ("no_session",)} if is_control else {},
            patience_s=3.0 if is_control else 30.0,
        ),
        disk_full,
        is_timed=False,
        lacks=lacks_mount,
    ),
)
