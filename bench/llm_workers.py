"""Processes that decode a language model without a broker: what a pipeline is held against.

A worker says `warm` when it is. Each line of its input is a JSON object, ``context`` and
``tokens``: it goes on with a prompt of so many tokens, greedily, by so many more, and answers with
what one took and which they were. The prompt's own computing is not timed, and done once.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bench.llm_models import Ids, prompt_ids
from bench.workers import LineProcess
from contract.plan import load_plan
from shards.reader import read_shard
from stage.engine import load_decoder


class Decoded(NamedTuple):
    """Milliseconds for a token of each row together, divided by the rows; tokens of each row."""

    ms_per_token: float
    tokens: list[list[int]]


class TextWorker(LineProcess):
    """A worker with ``rows`` sequences in one batch, held to one processor."""

    def __init__(self, kind: str, folder: Path, rows: int, cpu: int | None) -> None:
        """``kind``: «shard», of a plan's folder with one stage; «stage-K», of one with more, whose
        tokens mean nothing; or «transformers», of a model's."""
        super().__init__(["bench.llm_workers", kind, str(folder), str(rows)], cpu)
        try:
            self.hear()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TextWorker":
        return self

    def decode(self, context: int, tokens: int) -> Decoded:
        """Go on behind ``context`` tokens by so many."""
        self.begin(context, tokens)
        return self.finish()

    def begin(self, context: int, tokens: int) -> None:
        """The same, without waiting for it."""
        self.tell(json.dumps({"context": context, "tokens": tokens}))

    def finish(self) -> Decoded:
        """Wait for what was begun."""
        return Decoded(**json.loads(self.hear()))


class Decoder(Protocol):
    """One of the kinds."""

    vocabulary: int

    def fill(self, ids: Ids) -> Ids:
        """Compute prompts (rows, tokens) from nothing; the next tokens, (rows, 1)."""
        ...

    def step(self, ids: Ids, position: int) -> Ids:
        """Compute (rows, 1) behind the first ``position`` tokens; the next, (rows, 1)."""
        ...


class ShardDecoder:
    """Our engine on a shard that holds the whole model, one thread."""

    def __init__(self, folder: Path, rows: int) -> None:
        plan = load_plan(folder)
        (spec,) = plan.stages
        assert spec.cache is not None
        assert plan.decoding is not None
        shard = read_shard(folder / spec.folder, plan, 0)
        self._engine = load_decoder("onnxruntime", shard, spec.cache, plan.decoding, threads=1)
        self._block = self._engine.allocate(rows)
        self._chunk = plan.decoding.chunk_tokens
        self._given = spec.inputs[0].name
        self.vocabulary = plan.model.input.vocabulary_size  # type: ignore[union-attr]

    def fill(self, ids: Ids) -> Ids:
        """See :class:`Decoder`; in chunks, as a client sends them."""
        for begin in range(0, ids.shape[1], self._chunk):
            best = self.step(ids[:, begin : begin + self._chunk], begin)
        return best

    def step(self, ids: Ids, position: int) -> Ids:
        """See :class:`Decoder`."""
        (logits,) = self._engine.step(self._block, {self._given: ids}, position).values()
        best: Ids = logits.argmax(-1)[:, None]
        return best


class StageDecoder:
    """One stage of a plan that has more, one thread: as long as its steps take, and no text.

    It gets what it would get in a pipeline, but for the values.
    """

    def __init__(self, folder: Path, index: int, rows: int) -> None:
        plan = load_plan(folder)
        spec = plan.stages[index]
        assert spec.cache is not None
        assert plan.decoding is not None
        shard = read_shard(folder / spec.folder, plan, index)
        self._engine = load_decoder("onnxruntime", shard, spec.cache, plan.decoding, threads=1)
        self._block = self._engine.allocate(rows)
        self._chunk = plan.decoding.chunk_tokens
        self._given = spec.inputs[0]
        self.vocabulary = plan.model.input.vocabulary_size  # type: ignore[union-attr]

    def fill(self, ids: Ids) -> Ids:
        """See :class:`Decoder`; the last ids stand for the next."""
        for begin in range(0, ids.shape[1], self._chunk):
            self._run(ids[:, begin : begin + self._chunk], begin)
        return ids[:, -1:]

    def step(self, ids: Ids, position: int) -> Ids:
        """See :class:`Decoder`; the same ids again."""
        self._run(ids, position)
        return ids

    def _run(self, ids: Ids, position: int) -> None:
        inner = self._given.shape[2:]  # of a hidden state; token ids have none
        sizes = (*ids.shape, *(int(size) for size in inner))
        given = np.zeros(sizes, self._given.dtype) if inner else ids
        self._engine.step(self._block, {self._given.name: given}, position)


class TransformersDecoder:
    """transformers' own model with its own cache, as it is loaded by default, one thread."""

    def __init__(self, folder: Path) -> None:
        import torch

        from planner.language.stand_ins import import_transformers

        torch.set_num_threads(1)
        self._torch: Any = torch
        self._library = import_transformers()
        self._model = self._library.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        self.vocabulary = int(self._model.config.vocab_size)

    def fill(self, ids: Ids) -> Ids:
        """See :class:`Decoder`."""
        self._cache = self._library.DynamicCache(config=self._model.config)
        return self._forward(ids)

    def step(self, ids: Ids, position: int) -> Ids:
        """See :class:`Decoder`."""
        self._cache.crop(position - self._cache.get_seq_length())  # by so many; none: as it is
        return self._forward(ids)

    def _forward(self, ids: Ids) -> Ids:
        with self._torch.inference_mode():
            answer = self._model(
                input_ids=self._torch.from_numpy(ids),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        best: Ids = answer.logits[:, -1].numpy().argmax(-1)[:, None]
        return best


def go_on(decoder: Decoder, first: Ids, position: int, tokens: int) -> Decoded:
    """Decode ``first`` and so many tokens after it; timed."""
    ids, found = first, [first]
    started = time.perf_counter()
    for index in range(tokens):
        ids = decoder.step(ids, position + index)
        found.append(ids)
    seconds = time.perf_counter() - started
    rows = np.concatenate(found, axis=1)
    return Decoded(seconds / tokens / len(first) * 1e3, rows.tolist())


def _serve(make: Callable[[], Decoder], rows: int) -> None:
    decoder = make()
    context, first = 0, np.zeros((rows, 1), np.int64)
    print("warm", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted["context"] != context:
            context = wanted["context"]
            first = decoder.fill(prompt_ids(rows, context, decoder.vocabulary))
        print(json.dumps(go_on(decoder, first, context, wanted["tokens"])._asdict()), flush=True)


def _decoder(kind: str, folder: Path, rows: int) -> Decoder:
    if kind == "transformers":
        return TransformersDecoder(folder)
    if kind == "shard":
        return ShardDecoder(folder, rows)
    return StageDecoder(folder, int(kind.removeprefix("stage-")), rows)


if __name__ == "__main__":
    _kind, _folder, _rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    _serve(lambda: _decoder(_kind, _folder, _rows), _rows)
