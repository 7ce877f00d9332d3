"""Folders without room for a model's files: one sentence with the folder, the bytes, a remedy."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from contract.errors import EnvironmentMissingError, ModelError, PlanError
from planner.fold import fold
from planner.language import canonical, run_shards
from planner.language.canonical import canonicalise_decoder
from planner.language.run_shards import open_block
from planner.rejoin import rejoin
from planner.room import room_for_plan, room_for_scratch
from planner.scratch import ScratchFolder
from planner.split import take_stage
from tests.conftest import Run
from tests.decoder_models import save_model
from tests.planner.conftest import Cached
from tests.planner.decoders import DECODING, exported
from tests.planner.test_onnx_file import convolutions


def full(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def plan_with_small_files(
    largest_bytes: int, scratch: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`shardline plan` where no file can be larger; its temporary files go to ``scratch``."""
    return subprocess.run(
        [sys.executable, "-m", "shardline", "plan", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "TMPDIR": str(scratch), "COLUMNS": "500"},
        # Python ignores SIGXFSZ: a write beyond the limit is an OSError, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes)
        ),
    )


def test_a_plan_without_room_for_temporary_files_ends_with_what_to_do(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ("--context", "64", "--out", str(tmp_path / "out"))
    done = plan_with_small_files(300_000, scratch, f"hf:{model}", *options)
    assert done.returncode == 10, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    size = (model / "model.safetensors").stat().st_size
    assert f"{scratch}: cannot write temporary files (File too large); {size / 1e6:.1f} MB" in said
    assert "set TMPDIR to a folder" in said
    assert not list(scratch.glob("shardline-*"))
    assert not (tmp_path / "out").exists()


def test_weights_of_a_language_model_that_the_disk_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(canonical, "write_weights", full)
    with pytest.raises(EnvironmentMissingError, match=r"No space left.* MB are needed.*TMPDIR"):
        canonicalise_decoder(exported("llama").imported, DECODING)


def test_a_block_that_the_disk_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = exported("llama").graph()
    block = take_stage(graph, 0, 1)
    monkeypatch.setattr(run_shards.Path, "write_bytes", full)
    with pytest.raises(EnvironmentMissingError, match=r"cannot write temporary files \(No space"):
        open_block(graph, block, 1)


def test_shards_that_the_disk_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = exported("llama")
    size = model.graph().model.weight_bytes
    monkeypatch.setattr("shards.writer.write_weights", full)
    with pytest.raises(PlanError) as caught:
        model.plan(tmp_path / "out")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'out'}: cannot write the plan (No space left on device)")
    assert f"; {size / 1e6:,.1f} MB are needed there" in said
    assert "--out" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_plan_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match=r"cannot write the plan \(Not a directory\).*--out"):
        exported("llama").plan(tmp_path / "file" / "out")


def test_an_image_model_below_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = ("--input", "32x32", "--stages", 2, "--out", tmp_path / "file" / "out")
    done = run("plan", "tests.planner.small_models:Plain", *options)
    assert done.code == 4, done
    assert "cannot write the plan (Not a directory)" in " ".join(done.err.split())


def test_an_exported_image_model_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ("--input", "32x32", "--stages", "2", "--out", str(tmp_path / "out"))
    done = plan_with_small_files(2_000, scratch, "tests.planner.small_models:Plain", *options)
    assert done.returncode == 10, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert f"{scratch}: cannot write temporary files (" in said
    assert "set TMPDIR" in said
    assert not list(scratch.glob("shardline-*"))


@pytest.mark.parametrize(
    "writes", ["planner.importers.onnx_file.onnx.save", "planner.canonical.fold"]
)
def test_an_onnx_file_that_the_disk_has_no_room_for_twice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(convolutions(["batch", 3, 8, 8]), file)
    monkeypatch.setattr(writes, full)
    done = run("plan", file, "--stages", 2, "--out", tmp_path / "out")
    assert done.code == 10, done
    said = " ".join(done.err.split())
    assert "cannot write temporary files (No space left on device)" in said
    assert "set TMPDIR" in said


def test_what_onnxruntime_cannot_write_is_not_the_model_s_fault(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx.save(convolutions(["batch", 3, 8, 8]), file)
    with pytest.raises(OSError, match=r"cannot write f\.onnx"):
        fold(file, tmp_path / "absent" / "f.onnx")
    file.write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot load the model"):
        fold(file, tmp_path / "absent" / "f.onnx")


def test_an_image_model_s_weights_that_the_disk_has_no_room_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.writer.write_weights", full)
    options = ("--input", "32x32", "--stages", 2, "--out", tmp_path / "out")
    done = run("plan", "tests.planner.small_models:Plain", *options)
    assert done.code == 10, done
    said = " ".join(done.err.split())
    assert "cannot write temporary files (No space left on device" in said
    assert "set TMPDIR" in said


def test_shards_that_the_disk_has_no_room_to_put_together(
    small: Callable[[str], Cached], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small("Plain").plan(tmp_path, num_stages=2)
    monkeypatch.setattr("shards.writer.write_weights", full)
    with pytest.raises(EnvironmentMissingError, match=r"cannot write temporary files \(No space"):
        rejoin(tmp_path / "m", plan)


def test_a_machine_without_a_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.scratch.tempfile.mkdtemp", full)
    with pytest.raises(EnvironmentMissingError, match=r"No space left.*set TMPDIR"):
        ScratchFolder()


@pytest.mark.parametrize("room", [room_for_scratch, room_for_plan])
def test_what_is_wrong_with_another_file_is_not_taken_for_a_full_disk(
    tmp_path: Path, room: type[room_for_plan]
) -> None:
    with pytest.raises(FileNotFoundError), room(tmp_path / "out", 1):
        (tmp_path / "model" / "config.json").read_bytes()
