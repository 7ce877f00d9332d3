"""Profiles as documents, their cache, and the costs that follow from them."""

import json
import math
from pathlib import Path

import pytest

from contract.command import Examination, LinkProbe
from contract.errors import SettingsError
from contract.profile import (
    BatchTimings,
    DeviceProfile,
    FleetProfile,
    load_profile,
    parse_profile,
)
from planner.devices.fleet_costs import broker_from_profile, devices_from_profile
from planner.devices.profile_cache import KindTimings, ProfileCache, TimingsKey
from planner.devices.profile_report import broker_figures, describe_device, kind_of, usable_memory
from stage.link_probe import down_rate, processor_share
from stage.machine import processors_limit

KEY = TimingsKey(digest="d", kind="Pi 4", engine="onnxruntime 1", threads=4, batch_size=1)


def kept(**change: object) -> KindTimings:
    good: dict[str, object] = {
        "key": KEY,
        "measured_on": "pi-0",
        "timings": BatchTimings(
            batch_size=1,
            segment_ms=(1.0, 3.0),
            unpacked_ms=(2.0, 6.0),
            whole_ms=4.0,
            unpacked_whole_ms=8.0,
        ),
        "base_bytes": 70,
        "packing_factor": 2.0,
        "unpacked_factor": 1.0,
        "activation_bytes": None,
        "sustained_share": 0.5,
        "temperature_before_celsius": 40.0,
        "temperature_after_celsius": 60.0,
        "throttled": 0,
        "busy": False,
        "time_unix_s": 1.0,
    }
    return KindTimings.model_validate({**good, **change})


def examination(**change: object) -> Examination:
    good: dict[str, object] = {
        "request_id": "0" * 16,
        "unix_time_s": 1.0,
        "shardline_version": "0",
        "machine": "aarch64",
        "processor": "0x41",
        "board": "Raspberry Pi 4 Model B Rev 1.5",
        "kernel": "6",
        "kernel_command_line": "",
        "cores": 4,
        "engine": "onnxruntime",
        "engine_version": "1",
        "memory_total_bytes": 4000,
        "memory_available_bytes": 3000,
        "memory_limit_bytes": None,
        "memory_used_bytes": None,
        "memory_controller": True,
        "cache_dir": "/",
        "cache_total_bytes": 1,
        "cache_free_bytes": 1,
        "cache_writable": True,
        "temperature_celsius": 41.0,
        "throttled": None,
        "threads": 4,
    }
    return Examination.model_validate({**good, **change})


LINK = LinkProbe(
    request_id="0" * 16,
    up_bytes_per_s=1e7,
    down_bytes_per_s=2e7,
    through_bytes_per_s=9e6,
    latency_ms=0.5,
    message_ms=0.2,
    byte_ms=2e-6,
    processor_share=1.0,
)


def fleet_profile(**change: object) -> FleetProfile:
    devices = tuple(describe_device(name, examination(), [kept()], LINK) for name in ("a", "pi-0"))
    good = {"digest": "d", "model": "m", "batch_sizes": (1,), "devices": devices}
    return FleetProfile.model_validate({**good, "time_unix_s": 2.0, **change})


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    profile = fleet_profile(broker_bytes_per_s=5e7)
    (tmp_path / "p.json").write_text(profile.to_json())
    assert load_profile(tmp_path / "p.json") == profile
    assert profile.num_segments == 2
    device = profile.device("a")
    assert device is not None
    assert device.timings[0].images_per_s == 250.0
    assert device.timings_of(2) is None


def test_only_the_device_that_measured_says_how_warm_it_got() -> None:
    other, own = fleet_profile().devices
    assert (own.temperature_before_celsius, own.temperature_after_celsius) == (40.0, 60.0)
    assert (other.temperature_before_celsius, other.temperature_after_celsius) == (41.0, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version"),
        ({"devices": []}, "devices"),
        ({"batch_sizes": [1, 2]}, "has batch sizes"),
        ({"more": 1}, "more"),
    ],
)
def test_a_document_that_is_no_profile_is_refused(change: dict[str, object], said: str) -> None:
    document = {**json.loads(fleet_profile().to_json()), **change}
    with pytest.raises(SettingsError, match=rf"here: not a profile .*{said}.*shardline profile"):
        parse_profile(json.dumps(document), "here")


def test_two_devices_of_one_name_or_with_other_segments_are_refused() -> None:
    document = json.loads(fleet_profile().to_json())
    twice = {**document, "devices": [document["devices"][0]] * 2}
    with pytest.raises(SettingsError, match="named twice"):
        parse_profile(json.dumps(twice), "here")
    document["devices"][0]["timings"][0]["segment_ms"].append(1.0)
    document["devices"][0]["timings"][0]["unpacked_ms"].append(1.0)
    with pytest.raises(SettingsError, match=r"\[2, 3\] segments"):
        parse_profile(json.dumps(document), "here")


def test_a_file_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a file that `shardline profile` wrote"):
        load_profile(tmp_path / "none.json")


def test_costs_follow_from_a_profile() -> None:
    costs = devices_from_profile(fleet_profile(), 1)[0]
    beside = 1.02  # the engine, with messages around it
    assert costs.segment_ms == pytest.approx((2.0 * beside, 6.0 * beside)), "the speed that lasts"
    assert costs.unpacked_ms == pytest.approx((4.0 * beside, 12.0 * beside))
    assert costs.link.up_ms(1e7) == 1000
    assert costs.link.down_ms(1e7) == 500
    assert costs.link.latency_ms == 0.5
    assert costs.relay.message_ms == pytest.approx(1.8 * 0.2), "a stage beside its engine"
    assert costs.relay.byte_ms == pytest.approx(1.7 * 2e-6)
    assert costs.memory_bytes == 3000
    with pytest.raises(SettingsError, match=r"not measured at batch 8, but at 1; .*--batch 8"):
        devices_from_profile(fleet_profile(), 8)


@pytest.mark.parametrize("factor", [None, 1.2, 2.5])
def test_giving_up_prepacking_is_offered_only_where_it_saves_memory(factor: float | None) -> None:
    timings = kept(unpacked_factor=factor, sustained_share=None)
    device = describe_device("a", examination(), [timings], LINK)
    costs = devices_from_profile(fleet_profile(devices=(device,)), 1)[0]
    assert costs.unpacked_ms is None
    assert costs.segment_ms == pytest.approx((1.02, 3.06))


def test_the_broker_has_a_limit_only_where_the_devices_reached_it() -> None:
    def probe(rate: float | None) -> LinkProbe:
        return LinkProbe(request_id="0" * 16, through_bytes_per_s=rate)

    assert broker_figures([probe(10), probe(10)], [probe(5), probe(5)]) == (10, True)
    assert broker_figures([probe(10), probe(10)], [probe(9), probe(9)]) == (18, False)
    assert broker_figures([probe(10)], [probe(5)]) == (5, False)
    assert broker_figures([probe(10), probe(10)], [probe(5), probe(None)]) == (None, False)
    limited = fleet_profile(broker_bytes_per_s=1e7, broker_saturated=True)
    assert broker_from_profile(limited).bytes_per_s == 1e7
    free = fleet_profile(broker_bytes_per_s=1e7, broker_saturated=False)
    assert broker_from_profile(free).bytes_per_s == math.inf


def test_a_container_with_less_processor_is_another_kind() -> None:
    whole, half = examination(), examination(processors_limit=0.5)
    assert kind_of(whole).startswith("Raspberry Pi 4 Model B Rev 1.5, aarch64, 4 cores")
    assert kind_of(whole) != kind_of(half)
    assert kind_of(whole) != kind_of(examination(threads=1))
    assert kind_of(whole) == kind_of(examination(memory_available_bytes=1))


def test_what_a_container_uses_now_counts_as_free_for_a_stage() -> None:
    assert usable_memory(examination()) == 3000
    limited = {"memory_limit_bytes": 2000, "memory_used_bytes": 500}
    assert usable_memory(examination(**limited)) == 2000
    assert usable_memory(examination(**limited, memory_available_bytes=1000)) == 1500


def test_the_processors_limit_is_read_from_either_kind_of_cgroup(tmp_path: Path) -> None:
    assert processors_limit(tmp_path) is None
    cgroup = tmp_path / "sys/fs/cgroup"
    (cgroup / "cpu").mkdir(parents=True)
    (cgroup / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (cgroup / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert processors_limit(tmp_path) is None
    (cgroup / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    assert processors_limit(tmp_path) == 0.5
    (cgroup / "cpu.max").write_text("150000 100000\n")
    assert processors_limit(tmp_path) == 1.5
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert processors_limit(tmp_path) is None


def test_times_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path / "profiles")
    assert cache.get(KEY) is None
    cache.put(kept())
    assert cache.get(KEY) == kept()
    for field, value in (
        *(("digest", "e"), ("kind", "Pi 5"), ("engine", "onnxruntime 2")),
        *(("threads", 1), ("batch_size", 8)),
    ):
        assert cache.get(KEY.model_copy(update={field: value})) is None, field


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"format_version":9}', b" " * 5_000_000])
def test_a_damaged_file_is_ignored_with_a_warning_and_written_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ProfileCache(tmp_path)
    cache.put(kept())
    [file] = tmp_path.iterdir()
    file.write_bytes(damage)
    assert cache.get(KEY) is None
    assert "it will be measured again" in caplog.text
    cache.put(kept())
    assert cache.get(KEY) == kept()


def test_a_file_of_another_key_is_ignored(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path)
    other = KEY.model_copy(update={"digest": "e"})
    (tmp_path / KEY.file_name).write_text(kept(key=other).model_dump_json())
    assert cache.get(KEY) is None


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    ProfileCache(tmp_path / "file").put(kept())
    assert "not kept" in caplog.text


def test_the_cache_lies_where_the_user_keeps_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ProfileCache().folder == tmp_path / "shardline" / "profiles"


def test_the_way_down_is_what_remains_of_the_way_there_and_back() -> None:
    assert down_rate(1000, large_ms=31.0, small_ms=1.0, up_bytes_per_s=1e5) == pytest.approx(5e4)
    # noise cannot make it endless
    assert down_rate(1000, large_ms=10.0, small_ms=1.0, up_bytes_per_s=1e5) == pytest.approx(2e6)
    assert 0 < processor_share(0.05) <= 1


def test_a_device_without_link_figures_costs_nothing_to_reach() -> None:
    nothing = LinkProbe(request_id="0" * 16, error="no answer")
    device = describe_device("a", examination(), [kept()], nothing)
    assert isinstance(device, DeviceProfile)
    costs = devices_from_profile(fleet_profile(devices=(device,)), 1)[0]
    assert (costs.link.up_bytes_per_s, costs.link.latency_ms) == (math.inf, 0.0)
