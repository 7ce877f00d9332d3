"""Weights written tensor by tensor: byte for byte what the format's own library writes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shards.weights_writer import ArraySpec, write_weights

DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool", "uint16")
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12
)
arrays = st.dictionaries(
    names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6
)


@given(arrays)
@settings(max_examples=40)
def test_the_bytes_are_those_of_the_reference_implementation(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("w")
    kinds.pop("__metadata__", None)
    generator = np.random.default_rng(0)
    weights = {
        name: generator.integers(0, 2, shape).astype(dtype)
        for name, (dtype, shape) in kinds.items()
    }
    save_file(weights, folder / "theirs")
    specs = {name: ArraySpec(a.dtype.name, a.shape) for name, a in weights.items()}
    write_weights(folder / "ours", specs, weights.__getitem__)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_arrays_in_any_layout_are_written_as_they_read(tmp_path: Path) -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    write_weights(tmp_path / "w", {"a": ArraySpec("float32", (4, 3))}, lambda _: array)
    np.testing.assert_array_equal(load_file(tmp_path / "w")["a"], array)


def test_another_array_than_was_announced_is_refused(tmp_path: Path) -> None:
    specs = {"a": ArraySpec("float32", (4,))}
    with pytest.raises(ValueError, match="a: float32"):
        write_weights(tmp_path / "w", specs, lambda _: np.zeros(3, np.float32))
