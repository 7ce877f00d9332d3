"""Images, and whatever else is computed once and forgotten: one input, one output, no state."""

from dataclasses import replace
from typing import cast

from contract import topics
from contract.activation import Activation, Header, encode
from contract.codec import compress, expand, wire_specs
from contract.errors import EngineError, TensorMismatchError, WireFormatError
from contract.plan import StageSpec
from contract.tensor_spec import Tensors, check_tensors
from stage.dedup import AttemptKey, Output
from stage.engine import Engine
from stage.work import Done, LoadedStage, Stopwatch, now_us


class ImageWork:
    """See :class:`stage.work.Work`."""

    answers_again = True

    def __init__(self, device: str, cluster: str, loaded: LoadedStage) -> None:
        self._device, self._cluster, self._loaded = device, cluster, loaded
        self._engine = cast(Engine, loaded.engine)
        self._where = f"stage {loaded.spec.stage_index} on {device}"

    def key_of(self, header: Header) -> AttemptKey:
        """See :class:`stage.work.Work`."""
        return AttemptKey.of(header)

    def run(self, activation: Activation, received_us: int) -> Done:
        """See :class:`stage.work.Work`."""
        spec, where, header = self._loaded.spec, self._where, activation.header
        # Before anything is allocated: small inputs of many images may be large further on.
        images = _count_images(f"{where}, input", self._loaded, header, activation.tensors)
        # What the codecs do lies outside of started to finished: that is the engine's time.
        inputs = expand(header.codec, spec.inputs, activation.tensors, f"{where}, input")
        watch = Stopwatch()
        outputs = self._engine.run(inputs)
        answered = check_tensors(f"{where}, output", spec.outputs, outputs)
        if answered != images:
            raise EngineError(f"{where}: {images} images went in, {answered} came out")
        watch.stop()
        outputs = compressed(where, spec, outputs)
        output = self._output(header, watch, received_us, outputs)
        return Done((output,), {**watch.counts(received_us), "images": images})

    def undelivered(self, key: AttemptKey, output: Output) -> None:
        """Nothing is kept that could be let go."""

    def _output(
        self, header: Header, watch: Stopwatch, received_us: int, outputs: Tensors
    ) -> Output:
        loaded, sent_us = self._loaded, now_us()
        index = loaded.spec.stage_index + 1
        onward = replace(
            header,
            stage_index=index,
            codec=loaded.spec.codec,
            sent_us=sent_us,
            trace=(*header.trace, watch.hop(received_us, sent_us)),
        )
        if loaded.is_last:
            topic = topics.result_topic(self._cluster, header.client, self._device)
        else:
            topic = topics.input_topic(
                self._cluster, header.route[index], header.plan_id, index, self._device
            )
        return Output(topic, encode(onward, outputs))


def compressed(where: str, spec: StageSpec, outputs: Tensors) -> Tensors:
    """Outputs as they travel. Values that the codec cannot carry are the engine's failure."""
    try:
        return compress(spec.codec, outputs)
    except WireFormatError as error:
        raise EngineError(f"{where}, output: {error}") from error


def _count_images(where: str, loaded: LoadedStage, header: Header, tensors: Tensors) -> int:
    """How many images an input holds: at most as many as the plan was made for.

    Raises:
        TensorMismatchError: these are not the tensors that the plan names, or are too many images.
    """
    images = check_tensors(where, wire_specs(header.codec, loaded.spec.inputs), tensors)
    if images > loaded.plan.batch_size:
        raise TensorMismatchError(
            f"{where}: {images:,} images, plan {loaded.plan.plan_id} was made for at most "
            f"{loaded.plan.batch_size:,}"
        )
    return images
