"""Sharded language models write what transformers writes: 64 tokens, 2 to 4 stages, three families.

    python -m bench.decoder_equality [--models gpt2,llama,qwen3] [--tokens 64]

Random weights, so that nothing need be downloaded. Prints two tables in Markdown, and ends with 1
where another token is chosen that is no near tie, or logits differ by more than 0.001. A model is
planned before it is loaded as a whole, so the peak of memory is the planner's where the model is
the first (`--models llama`). Takes some minutes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contract.decoder import Decoding
from contract.plan import Plan
from planner.graph import segment_graph
from planner.importers.transformers_directory import import_transformers_directory
from planner.language.build import build_decoder_plan
from planner.language.canonical import canonicalise_decoder
from planner.language.memory import peak_bytes
from planner.language.run_shards import StageRunner, shard_runners
from planner.language.stand_ins import build_without_weights, import_transformers
from planner.onnx_graph import Array
from planner.request import PlanRequest
from shards.weights_writer import ArraySpec, write_weights

PROMPTS = (1, 17, 500)
STAGES = (4, 3, 2)
CONTEXT, CHUNK = 640, 64
TOLERANCE = 1e-3
SMALL = {
    "vocab_size": 32_000,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "max_position_embeddings": 1024,
}
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("GPT2", {}),  # the defaults are the shape of 124M parameters
    "llama": (
        "Llama",
        {**SMALL, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "qwen3": (
        "Qwen3",
        {
            **SMALL,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 128,  # larger than its share of the hidden state, as in Qwen3 itself
            "tie_word_embeddings": True,
        },
    ),
}
"""transformers' class for a configuration and for a model begin alike; sizes where not its own."""


class Verdict(NamedTuple):
    """What came of one text. ``same`` + ``near_ties`` + ``wrong`` are its tokens."""

    same: int
    near_ties: int
    wrong: int
    difference: float
    largest: float

    @property
    def is_good(self) -> bool:
        """Whether the two are the same model; a logit that is no number is none."""
        return not self.wrong and self.difference <= TOLERANCE


def judge(tokens: Array, ours: Array, theirs: Array) -> Verdict:
    """Tokens (n,) that were chosen by logits ``ours``, beside the whole model's on the same text.

    Both logits are (n, vocabulary). Another token is a near tie where the whole model's two best
    lie closer than twice the tolerance. Pure.
    """
    other = tokens != theirs.argmax(-1)
    second, first = np.partition(theirs, -2, axis=-1)[:, -2:].T
    ties = other & (first - second < 2 * TOLERANCE)
    return Verdict(
        same=int((~other).sum()),
        near_ties=int(ties.sum()),
        wrong=int((other & ~ties).sum()),
        difference=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(theirs).max()),
    )


def save_model(folder: Path, kind: str) -> int:
    """Config and weights, tensor by tensor; bytes of the weights."""
    folder.mkdir()
    name, sizes = MODELS[kind]
    library = import_transformers()
    config = getattr(library, f"{name}Config")(**sizes)
    architecture = "GPT2LMHeadModel" if kind == "gpt2" else f"{name}ForCausalLM"
    config.architectures = [architecture]
    config.save_pretrained(folder)
    model = build_without_weights(config, "eager")
    shapes = {name: tuple(its.shape) for name, its in model.named_parameters()}
    generator = np.random.default_rng(0)

    def read(name: str) -> Array:
        values = generator.standard_normal(shapes[name], np.float32)
        if len(shapes[name]) > 1:
            return values * np.float32(0.05)
        return values * np.float32(0.1) + np.float32(name.endswith("weight"))

    specs = {name: ArraySpec("float32", shape) for name, shape in shapes.items()}
    write_weights(folder / "model.safetensors", specs, read)
    return sum(spec.size_bytes for spec in specs.values())


def generate(folder: Path, plan: Plan, prompt: Array, count: int) -> tuple[Array, Array, float]:
    """The best tokens, the logits by which each was chosen, and ms for each token after the first.

    All stages are open at once, as on a single machine.
    """
    runners: list[StageRunner] = list(shard_runners(folder, plan, threads=1))
    caches = [runner.new_caches(1) for runner in runners]
    position = 0

    def send(ids: Array) -> Array:
        nonlocal position
        activation = ids
        for runner, own in zip(runners, caches, strict=True):
            activation = runner.step(own, activation, position)
        position += ids.shape[1]
        return activation

    for start in range(0, prompt.shape[1], CHUNK):
        logits = send(prompt[:, start : start + CHUNK])
    seen, tokens = [logits], []
    started = time.perf_counter()
    for _ in range(count):
        tokens.append(seen[-1].argmax(-1)[:, None])
        if len(tokens) < count:
            seen.append(send(tokens[-1]))
    step_ms = (time.perf_counter() - started) * 1e3 / max(count - 1, 1)
    return np.concatenate(tokens, 1), np.stack(seen, 1)[0], step_ms


def plan_all(folder: Path, kind: str) -> list[Plan]:
    """The model in 4, 3 and 2 stages, and a row of the first table for each."""
    size = save_model(folder / kind, kind)
    started = time.perf_counter()
    imported = import_transformers_directory(folder / kind)
    exported_s = time.perf_counter() - started
    before = peak_bytes()
    decoding = Decoding(context_tokens=CONTEXT, sequences=4, chunk_tokens=CHUNK)
    graph = segment_graph(canonicalise_decoder(imported, decoding))
    plans = []
    for stages in STAGES:
        started = time.perf_counter()
        request = PlanRequest(f"{kind}-{stages}", folder, num_stages=stages)
        plan = build_decoder_plan(imported, graph, request)
        plans.append(plan)
        largest = max(stage.weight_bytes for stage in plan.stages)
        row(
            kind,
            stages,
            f"{size / 1e6:.0f} MB",
            f"{largest / 1e6:.0f} MB",
            f"{before / 1e6:.0f} MB",
            f"{peak_bytes() / 1e6:.0f} MB",
            f"{exported_s:.0f} s",
            f"{time.perf_counter() - started:.0f} s",
        )
    return plans


def compare(folder: Path, kind: str, plans: list[Plan], count: int) -> bool:
    """Every plan and prompt against the whole model in torch; whether all are good."""
    import torch

    library = import_transformers()
    whole = library.AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32)
    whole.eval()
    generator = np.random.default_rng(1)
    verdicts = []
    for length in PROMPTS:
        prompt = generator.integers(0, whole.config.vocab_size, (1, length))
        for plan in plans:
            tokens, seen, step_ms = generate(folder / plan.name, plan, prompt, count)
            with torch.no_grad():
                ids = torch.from_numpy(np.concatenate([prompt, tokens], 1))
                logits = whole(ids, use_cache=False).logits[0, length - 1 : -1].numpy()
            found = judge(tokens[0], seen, logits)
            verdicts.append(found.is_good)
            row(
                kind,
                plan.num_stages,
                length,
                f"{found.same} of {count}",
                found.near_ties,
                found.wrong,
                f"{found.difference:.2g}",
                f"{found.largest:.3g}",
                f"{step_ms:.1f}",
                "yes" if found.is_good else "NO",
            )
    return all(verdicts)


def row(*cells: object) -> None:
    """One line of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(*cells: str) -> None:
    """A table's first two lines, after an empty one."""
    print()
    row(*cells)
    row(*("---" for _ in cells))


def main() -> None:
    """Plan, generate, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    kinds = options.models.split(",")
    if unknown := set(kinds) - MODELS.keys():
        parser.error(f"--models {', '.join(sorted(unknown))}: expected some of {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as scratch:
        folder = Path(scratch)
        header(
            *("model", "stages", "weights", "largest stage", "memory before the weights"),
            *("peak of memory", "export", "plan"),
        )
        plans = {kind: plan_all(folder, kind) for kind in kinds}
        header(
            *(
                "model",
                "stages",
                "prompt",
                "same tokens",
                "near ties",
                "others",
                "logits differ by",
            ),
            *("largest logit", "ms a token", "equal"),
        )
        good = [compare(folder, kind, plans[kind], options.tokens) for kind in kinds]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
