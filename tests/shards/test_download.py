"""A download, driven by hand: what it asks for, in what order, and what it does about losses."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from contract.blob import BlobChunk, BlobRequest
from contract.errors import ShardError, ShardHashMismatchError
from contract.plan import ShardFile
from shards.download import FIRST_PATIENCE_S, LONGEST_PATIENCE_S, Download

CHUNK = 1000
DATA = np.random.default_rng(7).bytes(10 * CHUNK + 123)
FILE = ShardFile(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))


def answer(request: BlobRequest, data: bytes = DATA) -> BlobChunk:
    part = data[request.offset : request.offset + request.length]
    return BlobChunk(request.sha256, request.offset, part)


def open_download(path: Path, window: int = 4, file: ShardFile = FILE) -> Download:
    return Download(file, path / "partial", chunk_bytes=CHUNK, window=window)


def offsets(requests: list[BlobRequest]) -> list[int]:
    return [request.offset // CHUNK for request in requests]


def finish(download: Download, data: bytes = DATA, now_s: float = 0.0) -> int:
    """Answer everything in order; the number of requests that took."""
    requests = download.due(now_s)
    count = 0
    while requests:
        count += 1
        requests += download.accept(answer(requests.pop(0), data), now_s)
        requests += download.due(now_s)
    return count


def test_a_file_arrives_whole_and_each_byte_is_asked_for_once(tmp_path: Path) -> None:
    with open_download(tmp_path) as download:
        assert finish(download) == 11
        assert download.is_whole
        download.verify()
    assert (tmp_path / "partial").read_bytes() == DATA


def test_only_a_window_of_requests_is_outstanding(tmp_path: Path) -> None:
    with open_download(tmp_path, window=3) as download:
        first = download.due(0)
        assert offsets(first) == [0, 1, 2]
        assert download.due(0.1) == []
        download.accept(answer(first[0]), 0.2)
        assert offsets(download.due(0.2)) == [3]


def test_a_lost_chunk_is_asked_for_again_as_soon_as_the_next_one_comes(tmp_path: Path) -> None:
    with open_download(tmp_path) as download:
        requests = download.due(0)
        assert offsets(download.accept(answer(requests[1]), 0.1)) == [0]
        assert download.accept(answer(requests[2]), 0.1) == []  # asked again already
        assert download.written_bytes == 0
        download.accept(answer(requests[0]), 0.2)
        assert download.written_bytes == 3 * CHUNK
        download.accept(answer(requests[3]), 0.2)
        finish(download)
        download.verify()


def test_when_nothing_comes_one_request_is_repeated_ever_more_slowly(tmp_path: Path) -> None:
    with open_download(tmp_path) as download:
        assert len(download.due(0)) == 4
        sent_at = []
        for tick in range(2000):
            if requests := download.due(tick / 10):
                assert offsets(requests) == [0]
                sent_at.append(tick / 10)
        waits = [round(b - a) for a, b in zip([0.0, *sent_at], sent_at, strict=False)]
        assert waits[0] == pytest.approx(FIRST_PATIENCE_S, abs=0.2)
        assert waits == sorted(waits)
        assert waits[-1] == pytest.approx(LONGEST_PATIENCE_S, abs=0.2)
        # and it goes on as if nothing had been, with the window opening again
        now = 300.0
        [request] = download.due(now)
        assert offsets([request]) == [0]
        download.accept(answer(request), now)
        assert len(download.due(now)) == 2
        finish(download, now_s=now)


def test_a_second_try_goes_on_where_the_first_was_cut(tmp_path: Path) -> None:
    with open_download(tmp_path) as download:
        requests = download.due(0)
        for request in requests[:3]:
            download.accept(answer(request), 0)
    with open_download(tmp_path) as download:
        assert download.written_bytes == 3 * CHUNK
        assert finish(download) == 8
        download.verify()
    assert (tmp_path / "partial").read_bytes() == DATA


def test_a_beginning_that_is_not_of_this_file_is_found_out_and_removed(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(b"x" * 500)
    with open_download(tmp_path) as download:
        finish(download)
        with pytest.raises(ShardHashMismatchError):
            download.verify()
    assert not (tmp_path / "partial").exists()


def test_more_bytes_than_the_file_has_are_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(DATA + b"x")
    with open_download(tmp_path) as download:
        assert finish(download) == 11
        download.verify()


def test_bytes_that_pass_as_chunks_but_are_not_the_file_are_refused(tmp_path: Path) -> None:
    with open_download(tmp_path) as download:
        finish(download, bytes(len(DATA)))
        with pytest.raises(ShardHashMismatchError, match="expected sha256"):
            download.verify()
    assert not (tmp_path / "partial").exists()


@pytest.mark.parametrize("case", ["other file", "not asked for", "too short", "twice"])
def test_a_chunk_that_was_not_asked_for_changes_nothing(tmp_path: Path, case: str) -> None:
    with open_download(tmp_path) as download:
        requests = download.due(0)
        chunk = {
            "other file": BlobChunk("0" * 64, 0, DATA[:CHUNK]),
            "not asked for": BlobChunk(FILE.sha256, 7 * CHUNK, DATA[7 * CHUNK : 8 * CHUNK]),
            "too short": BlobChunk(FILE.sha256, 0, DATA[: CHUNK - 1]),
            "twice": answer(requests[0]),
        }[case]
        if case == "twice":
            download.accept(chunk, 0)
        before = download.written_bytes
        assert download.accept(chunk, 0) == []
        assert download.written_bytes == before
        for request in requests[case == "twice" :]:
            download.accept(answer(request), 0)
        finish(download)
        download.verify()


def test_an_empty_file_is_whole_at_once(tmp_path: Path) -> None:
    empty = ShardFile(sha256=hashlib.sha256(b"").hexdigest(), size_bytes=0)
    with open_download(tmp_path, file=empty) as download:
        assert download.is_whole
        download.verify()


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(ShardError, match="is the disk full"),
        Download(FILE, tmp_path / "not" / "there"),
    ):
        pass
