"""A text that was written by a plan's stages, judged by transformers' own model.

Both are given the text itself. If at every position the whole model's best token is the one that
stands there, greedy decoding by the whole model writes this very text.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from contract.plan import Plan
from planner.importers.transformers_directory import ImportedDecoder
from planner.language.reference import StreamedReference
from planner.language.run_shards import shard_runners
from planner.language.stand_ins import import_transformers
from planner.language.verify import TOLERANCE, Session, run_sessions
from planner.onnx_graph import Array
from planner.progress import Progress, silent


@dataclass(frozen=True)
class TextCheck:
    """``others``: tokens that the whole model would not have chosen; ``near_ties`` of them lie
    closer to its choice than twice the tolerance. The differences are of logits.
    """

    tokens: int
    others: int
    near_ties: int
    max_abs_difference: float
    max_abs_reference: float
    tolerance: float
    reference: str

    @property
    def failures(self) -> list[str]:
        """What of the promise does not hold."""
        found = []
        if self.others > self.near_ties:
            found.append(
                f"{self.others - self.near_ties} of {self.tokens} tokens are others than the "
                "whole model's"
            )
        if not self.max_abs_difference <= self.tolerance:
            found.append(
                f"the logits differ from the whole model's by {self.max_abs_difference:.3g}, "
                f"expected at most {self.tolerance:g}"
            )
        return found


def check_text(
    folder: Path,
    plan: Plan,
    imported: ImportedDecoder,
    token_ids: Array,
    prompt_tokens: int,
    threads: int = 1,
    progress: Progress = silent,
) -> TextCheck:
    """Compare a greedy text, and the shards' logits on it, with the whole model in float32.

    Args:
        folder: of the plan's shards.
        plan: not quantised.
        imported: the model that the plan is of.
        token_ids: int64 (1, tokens), the prompt and at least one token more.
        prompt_tokens: how many of them are the prompt.
        threads: of onnxruntime.
        progress: called as the work advances.

    Raises:
        ShardError: a shard is missing or corrupt.
        EngineError: onnxruntime cannot run one.
    """
    assert plan.decoding is not None
    session = Session(prompt_tokens, token_ids.shape[1] - 1)
    progress("asking the stages for their logits", 0.0)
    (found,) = run_sessions(
        shard_runners(folder, plan, threads), plan.decoding, token_ids, [session]
    )
    positions = range(prompt_tokens - 1, session.end)
    progress("asking the whole model", 0.5)
    whole = StreamedReference(imported).logits(token_ids[:, : session.end], positions)[0]
    progress("asking the whole model", 1.0)
    shards = np.concatenate([found[at] for at in positions])
    return compare(whole, shards, token_ids[0, prompt_tokens:])


def compare(whole: Array, shards: Array, written: Array) -> TextCheck:
    """Judge logits, float32 (tokens, vocabulary) each, and the tokens that were written. Pure."""
    largest = float(np.abs(whole).max())
    tolerance = TOLERANCE * max(1.0, largest / 10)
    best = whole.argmax(-1)
    behind = whole.max(-1) - np.take_along_axis(whole, written[:, None], -1)[:, 0]
    is_other = best != written
    return TextCheck(
        tokens=len(written),
        others=int(is_other.sum()),
        near_ties=int((is_other & (behind < 2 * tolerance)).sum()),
        max_abs_difference=float(np.abs(whole - shards).max()),
        max_abs_reference=largest,
        tolerance=tolerance,
        reference=f"transformers {import_transformers().__version__} on torch {torch.__version__}",
    )
