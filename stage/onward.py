"""The messages of a language model's stage: to the next stage, to the client, to the first one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import topics
from contract.activation import Activation, Hop, encode
from contract.decoder import FINISHED, IDS, SAMPLING, Step
from contract.tensor_spec import Tensors
from stage.dedup import Output
from stage.image_work import compressed
from stage.work import LoadedStage, now_us


class Onward:
    """Makes them; publishes nothing."""

    def __init__(self, device: str, cluster: str, loaded: LoadedStage) -> None:
        self._device, self._cluster, self._loaded = device, cluster, loaded

    def hidden(self, activation: Activation, hop: Hop, outputs: Tensors, where: str) -> Output:
        """The hidden state for the next stage, with what the message carries beside it.

        Raises:
            EngineError: the codec cannot carry a value.
        """
        header, spec, sent_us = activation.header, self._loaded.spec, now_us()
        index = spec.stage_index + 1
        onward = replace(
            header,
            stage_index=index,
            codec=spec.codec,
            sent_us=sent_us,
            trace=(*header.trace, hop._replace(sent_us=sent_us)),
        )
        beside = {name: activation.tensors[name] for name in (IDS, SAMPLING)}
        topic = topics.input_topic(
            self._cluster, header.route[index], header.plan_id, index, self._device
        )
        return Output(topic, encode(onward, {**compressed(where, spec, outputs), **beside}))

    def release(self, activation: Activation) -> Output:
        """The client's word that it is done with these sequences, for the next stage."""
        header, spec = activation.header, self._loaded.spec
        index = spec.stage_index + 1
        onward = replace(header, stage_index=index, codec=spec.codec, sent_us=now_us())
        topic = topics.input_topic(
            self._cluster, header.route[index], header.plan_id, index, self._device
        )
        return Output(topic, encode(onward, activation.tensors))

    def tokens(
        self,
        activation: Activation,
        hop: Hop,
        position: int,
        ids: npt.NDArray[np.int64],
        finished: npt.NDArray[Any],
    ) -> Iterator[Output]:
        """The tokens at ``position``, for the first stage if not all ended, and for the client.

        Made one after the other: the next token waits for the first of them alone.
        """
        header, sent_us = activation.header, now_us()
        stages = self._loaded.plan.num_stages
        if not finished.all():
            again = replace(
                header,
                stage_index=0,
                codec="float32",
                sent_us=sent_us,
                trace=(),
                scalars=Step(position, wants=True, returned=True).scalars(),
            )
            topic = topics.input_topic(
                self._cluster, header.route[0], header.plan_id, stages, self._device
            )
            yield Output(topic, encode(again, {IDS: ids, SAMPLING: activation.tensors[SAMPLING]}))
        result = replace(
            header,
            stage_index=stages,
            codec="float32",
            sent_us=sent_us,
            trace=(*header.trace, hop._replace(sent_us=sent_us)),
            scalars=Step(position).scalars(),
        )
        yield Output(
            topics.result_topic(self._cluster, header.client, self._device),
            encode(result, {IDS: ids, FINISHED: finished}),
        )
