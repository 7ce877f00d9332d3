"""transformers' own model as the reference, with no more of its weights in memory than one module.

The model is built without weights; each module reads its own from the checkpoint just before it
runs, as float32, and gives them back right after.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from planner.importers.transformers_directory import ImportedDecoder
from planner.language.stand_ins import build_without_weights, names_of_parameters
from planner.onnx_graph import Array

Change = Callable[[Array, bool], None]
"""Changes a matrix in its place; the second says whether it is (outputs, inputs)."""


class StreamedReference:
    """The unsplit model in torch. Its attention is transformers' own, «eager»."""

    def __init__(
        self, imported: ImportedDecoder, changes: Mapping[str, Change] | None = None
    ) -> None:
        """
        Args:
            imported: the model.
            changes: by the name of a parameter that is multiplied with, what is done to its matrix
                when it was read. The same parameter as an embedding stays as it is.

        Raises:
            ModelError: transformers cannot build it.
        """
        self._imported, self._changes = imported, changes or {}
        self.vocabulary_size = imported.facts.vocabulary_size
        self._model = build_without_weights(imported.config, "eager")
        first_name = {
            other: name
            for name, others in names_of_parameters(self._model).items()
            for other in others
        }
        for prefix, module in self._model.named_modules():
            own = {
                name: first_name[f"{prefix}.{name}".lstrip(".")]
                for name, parameter in module._parameters.items()
                if parameter is not None
            }
            if own:
                module.register_forward_pre_hook(self._reader(own))
                module.register_forward_hook(self._dropper(dict(module._parameters)))

    def logits(self, token_ids: Array, positions: Sequence[int]) -> Array:
        """Scores of the next token after some positions, float32 (batch, positions, vocabulary).

        Args:
            token_ids: int64 (batch, tokens).
            positions: which ones, all of one pass.
        """
        with torch.no_grad():
            result = self._model(
                input_ids=torch.from_numpy(np.ascontiguousarray(token_ids)),
                use_cache=False,
                logits_to_keep=torch.tensor(list(positions)),
            )
        logits: Array = result.logits.numpy()
        return logits

    def _reader(self, own: Mapping[str, str]) -> Callable[[nn.Module, object], None]:
        checkpoint, keys = self._imported.checkpoint, self._imported.keys

        def read(module: nn.Module, _inputs: object) -> None:
            for name, parameter in own.items():
                array = checkpoint.read(keys[parameter])
                change = self._changes.get(parameter)
                if change is not None and not isinstance(module, nn.Embedding):
                    change(array, isinstance(module, nn.Linear))
                module._parameters[name] = nn.Parameter(
                    torch.from_numpy(array), requires_grad=False
                )

        return read

    @staticmethod
    def _dropper(
        stand_ins: Mapping[str, nn.Parameter | None],
    ) -> Callable[[nn.Module, object, Tensor], None]:
        def drop(module: nn.Module, _inputs: object, _output: Tensor) -> None:
            module._parameters.update(stand_ins)

        return drop
