"""Planning a language model takes the memory of a part of it, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from shards.weights_writer import ArraySpec, write_weights
from tests.decoder_models import make_config

LAYERS, HIDDEN, INNER = 5, 896, 2944

PROGRAM = """
import json, sys
from pathlib import Path
from contract.decoder import Decoding
from planner.language.memory import peak_bytes
from tests.tiny_decoder import build_decoder, prepare_decoder
from planner.importers.transformers_directory import import_transformers_directory
from planner.language.canonical import canonicalise_decoder
from planner.graph import segment_graph

folder, out, quantisation = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
imported = import_transformers_directory(folder)
before = peak_bytes()
decoding = Decoding(
    context_tokens=64, sequences=1, chunk_tokens=16, quantisation=quantisation
)
graph = segment_graph(canonicalise_decoder(imported, decoding))
plan = build_decoder(out, imported, graph, 5, batch_size=1, profile=None)
print(json.dumps({
    "before": before,
    "grown": peak_bytes() - before,
    "weights": sum(stage.weight_bytes for stage in plan.stages),
    "largest": max(stage.weight_bytes for stage in plan.stages),
}))
"""


def save_large_model(folder: Path) -> int:
    """A Llama of 200 MB, written tensor by tensor; its bytes."""
    folder.mkdir()
    config = make_config(
        "llama",
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=14,
        num_key_value_heads=14,
    )
    config.save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**document, "architectures": ["LlamaForCausalLM"]})
    )
    shapes = {"model.embed_tokens.weight": (320, HIDDEN), "lm_head.weight": (320, HIDDEN)}
    shapes["model.norm.weight"] = (HIDDEN,)  # type: ignore[assignment]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in "qkvo":
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{at}.mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{at}.mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{name}.weight"] = (HIDDEN,)  # type: ignore[assignment]
    specs = {name: ArraySpec("float32", shape) for name, shape in shapes.items()}
    generator = np.random.default_rng(0)

    def read(name: str) -> np.ndarray:
        return generator.standard_normal(shapes[name], np.float32) * np.float32(0.05)

    write_weights(folder / "model.safetensors", specs, read)
    return sum(spec.size_bytes for spec in specs.values())


def plan_apart(folder: Path, quantisation: str) -> dict[str, int]:
    """What :data:`PROGRAM` says of the model in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "model"), str(folder / "out"), quantisation],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_more_than_a_part_of_the_weights_is_in_memory(tmp_path: Path) -> None:
    size = save_large_model(tmp_path / "model")
    assert size > 200e6
    found = plan_apart(tmp_path, "none")
    assert found["weights"] == size
    # A stage's weights, and once more as the engine packs them; not those of the others.
    assert found["grown"] < 2 * found["largest"], found
    assert found["grown"] < 0.7 * size, found


def test_quantised_weights_are_checked_tensor_by_tensor(tmp_path: Path) -> None:
    size = save_large_model(tmp_path / "model")
    found = plan_apart(tmp_path, "int8")
    assert found["weights"] < 0.3 * size
    assert found["grown"] < 0.6 * size, found
