"""Checks a language model's messages against the plan, before anything is allocated for them."""

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from contract.activation import Header
from contract.codec import expand, wire_specs
from contract.decoder import (
    IDS,
    IDS_SPEC,
    SAMPLING,
    SAMPLING_SPEC,
    Sampling,
    Step,
    decode_sampling,
)
from contract.errors import TensorMismatchError
from contract.plan import TokenInput
from contract.tensor_spec import Tensors, check_tensors
from stage.work import LoadedStage


class DecoderInput(NamedTuple):
    """A message that was found to be good.

    ``ids`` is (rows, tokens); ``tensors`` are what the engine takes. ``feeder``: who sends the
    inputs of this batch, whoever has sent this one.
    """

    header: Header
    step: Step
    ids: npt.NDArray[np.int64]
    sampling: tuple[Sampling, ...]
    tensors: Tensors
    feeder: str

    @property
    def end(self) -> int:
        """How many tokens the caches hold after it."""
        return self.step.position + int(self.ids.shape[1])


class InputReader:
    """Of one stage of one plan."""

    def __init__(self, where: str, loaded: LoadedStage) -> None:
        plan, spec = loaded.plan, loaded.spec
        assert plan.decoding is not None
        self._where, self._decoding = f"{where}, input", plan.decoding
        self._plan_id, self._max_rows = plan.plan_id, min(plan.batch_size, plan.decoding.sequences)
        self._vocabulary_size = cast(TokenInput, plan.model.input).vocabulary_size
        self._hidden = spec.inputs if spec.stage_index else ()
        self._sent = wire_specs(plan.codec_of_edge(spec.stage_index), self._hidden)
        self._specs = (*self._sent, IDS_SPEC, SAMPLING_SPEC)

    def read(self, header: Header, step: Step, tensors: Tensors, feeder: str) -> DecoderInput:
        """The message, if it is within the plan's limits.

        Raises:
            WireFormatError: it is not.
        """
        rows = check_tensors(self._where, self._specs, tensors)
        if rows > self._max_rows:
            raise TensorMismatchError(
                f"{self._where}: {rows:,} sequences, plan {self._plan_id} was made for at most "
                f"{self._max_rows:,} at once"
            )
        ids = cast("npt.NDArray[np.int64]", tensors[IDS])
        self._check_place(step, ids.shape[1])
        if ids.min() < 0 or ids.max() >= self._vocabulary_size:
            raise TensorMismatchError(
                f"{self._where}: token ids {ids.min()} to {ids.max()}, the vocabulary has 0 to "
                f"{self._vocabulary_size - 1}"
            )
        sampling = decode_sampling(tensors[SAMPLING])
        given: Tensors = {IDS: ids}
        if self._hidden:
            sent = {spec.name: tensors[spec.name] for spec in self._sent}
            given = expand(header.codec, self._hidden, sent, self._where)
        return DecoderInput(header, step, ids, sampling, given, feeder)

    def _check_place(self, step: Step, tokens: int) -> None:
        most, room = self._decoding.chunk_tokens, self._decoding.context_tokens
        if tokens > most:
            raise TensorMismatchError(
                f"{self._where}: {tokens:,} tokens of each sequence, at most {most:,} travel at "
                "once"
            )
        if step.position + tokens > room:
            raise TensorMismatchError(
                f"{self._where}: tokens {step.position:,} to {step.position + tokens - 1:,} of a "
                f"sequence, the plan's caches have room for {room:,}"
            )
        if step.returned and tokens != 1:
            raise TensorMismatchError(f"{self._where}: {tokens} tokens came back, expected one")
