"""The device's cache: files by content, shards made of them, the oldest thrown out for room."""

import hashlib
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import shards.cache
from contract.errors import ShardError, ShardMissingError
from contract.plan import Plan, ShardFile
from shards.cache import SPARE_BYTES, ShardCache
from shards.reader import read_shard
from tests.tiny import make_tiny_plan

BIG = 10**9


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path / "built")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", BIG)


def refuse(*_arguments: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def put(cache: ShardCache, content: bytes, age_s: float = 0) -> ShardFile:
    file = ShardFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    cache.partial(file).write_bytes(content)
    cache.keep(file)
    blob = cache.root / "blobs" / file.sha256
    os.utime(blob, (blob.stat().st_atime, blob.stat().st_mtime - age_s))
    return file


def put_stage(cache: ShardCache, plan: Plan, folder: Path, index: int) -> None:
    stage = plan.stages[index]
    for name, file in (("graph.onnx", stage.graph), ("weights.safetensors", stage.weights)):
        shutil.copyfile(folder / plan.name / stage.folder / name, cache.partial(file))
        cache.keep(file)


def test_a_stage_is_put_together_from_its_files_and_passes_every_check(
    cache: ShardCache, plan: Plan, tmp_path: Path
) -> None:
    put_stage(cache, plan, tmp_path / "built", 1)
    folder = cache.find_shard(plan, 1)
    shard = read_shard(folder, plan, 1)
    assert shard.weights_path.samefile(cache.root / "blobs" / plan.stages[1].weights.sha256)
    assert cache.find_shard(plan, 1) == folder  # and again, over the one before


def test_a_stage_without_all_its_files_is_missing(
    cache: ShardCache, plan: Plan, tmp_path: Path
) -> None:
    put_stage(cache, plan, tmp_path / "built", 1)
    cache.forget(plan.stages[1].weights)
    with pytest.raises(ShardMissingError):
        cache.find_shard(plan, 1)
    with pytest.raises(ShardMissingError):
        cache.find_shard(plan, 0)


def test_a_file_of_another_size_does_not_count(cache: ShardCache) -> None:
    file = put(cache, b"0123456789")
    assert cache.has(file)
    (cache.root / "blobs" / file.sha256).write_bytes(b"012345678")
    assert not cache.has(file)


def test_the_longest_unused_file_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    oldest_in_use = put(cache, b"a" * 1000, age_s=300)
    old = put(cache, b"b" * 1000, age_s=200)
    young = put(cache, b"c" * 1000, age_s=100)
    coming = ShardFile(sha256="d" * 64, size_bytes=1000)
    cache.make_room([coming], in_use=lambda: [oldest_in_use.sha256])
    assert [cache.has(file) for file in (oldest_in_use, old, young)] == [True, False, True]


def test_nothing_goes_while_there_is_room(cache: ShardCache) -> None:
    kept = put(cache, b"a" * 1000, age_s=10_000)
    cache.make_room([ShardFile(sha256="d" * 64, size_bytes=1000)])
    assert cache.has(kept)


@pytest.mark.parametrize("links", [True, False])
def test_a_thrown_out_file_frees_its_bytes_although_a_shard_was_made_of_it(
    plan: Plan, tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    cache = ShardCache(tmp_path / "cache", BIG)
    put_stage(cache, plan, tmp_path / "built", 0)
    folder = cache.find_shard(plan, 0)
    tight = ShardCache(tmp_path / "cache", 1500)
    tight.make_room([ShardFile(sha256="d" * 64, size_bytes=1400)])
    assert not folder.exists()
    assert list((tmp_path / "cache" / "blobs").iterdir()) == []


def test_what_can_never_fit_is_refused_with_the_figures(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1_000_000)
    with pytest.raises(ShardError, match=r"needs 2\.0 MB.*limit of 1 MB.*--cache-limit"):
        cache.make_room([ShardFile(sha256="d" * 64, size_bytes=2_000_000)])


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = SPARE_BYTES + 999
    monkeypatch.setattr(shards.cache.shutil, "disk_usage", lambda _path: usage(10**9, 0, free))
    cache.make_room([ShardFile(sha256="d" * 64, size_bytes=999)])
    with pytest.raises(ShardError, match="make room"):
        cache.make_room([ShardFile(sha256="d" * 64, size_bytes=1001)])


def test_what_can_never_fit_costs_nothing_that_is_here(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    kept = [put(cache, letter * 1000) for letter in (b"a", b"b")]
    with pytest.raises(ShardError):
        cache.make_room([ShardFile(sha256="d" * 64, size_bytes=10**18)])
    assert all(cache.has(file) for file in kept)


def test_the_beginning_of_another_file_stays_while_there_is_room(cache: ShardCache) -> None:
    other = ShardFile(sha256="e" * 64, size_bytes=1000)
    cache.partial(other).write_bytes(b"1")
    cache.make_room([ShardFile(sha256="d" * 64, size_bytes=1000)])
    assert cache.partial(other).exists()


def test_the_beginning_of_another_file_goes_for_room_the_own_is_kept(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1500)
    put(cache, b"a" * 1000)
    ours = ShardFile(sha256="d" * 64, size_bytes=1000)
    cache.partial(ours).write_bytes(b"1")
    cache.partial(ShardFile(sha256="e" * 64, size_bytes=1000)).write_bytes(b"1")
    cache.make_room([ours])
    assert [p.name for p in (cache.root / "partial").iterdir()] == ["d" * 64]


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ShardCache(tmp_path / "file" / "cache", BIG)
    with pytest.raises(ShardError, match="--cache must name a folder"):
        cache.make_room([ShardFile(sha256="d" * 64, size_bytes=1)])


def test_a_disk_without_hard_links_gets_copies(
    cache: ShardCache, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    put_stage(cache, plan, tmp_path / "built", 1)
    read_shard(cache.find_shard(plan, 1), plan, 1)
