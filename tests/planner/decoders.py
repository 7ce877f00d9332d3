"""Small decoders that are exported once for all tests that ask for them."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contract.decoder import Decoding
from contract.plan import Plan
from planner.graph import SegmentedGraph, segment_graph
from planner.importers.transformers_directory import (
    ImportedDecoder,
    import_transformers_directory,
)
from planner.language.canonical import canonicalise_decoder
from tests.decoder_models import read_model, save_model
from tests.tiny_decoder import DECODING, build_decoder


@dataclass
class Exported:
    """A model's folder, imported, and its canonical form by settings."""

    folder: Path
    imported: ImportedDecoder
    graphs: dict[Decoding, SegmentedGraph] = field(default_factory=dict)

    def graph(self, decoding: Decoding = DECODING) -> SegmentedGraph:
        if decoding not in self.graphs:
            self.graphs[decoding] = segment_graph(canonicalise_decoder(self.imported, decoding))
        return self.graphs[decoding]

    def plan(
        self, folder: Path, stages: int = 2, decoding: Decoding = DECODING, **request: object
    ) -> Plan:
        return build_decoder(folder, self.imported, self.graph(decoding), stages, **request)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Of transformers' own model, loaded as a whole: (rows, tokens, vocabulary)."""
        return read_model(self.folder, ids)


_made: dict[str, Exported] = {}


def exported(kind: str, **changes: object) -> Exported:
    key = repr((kind, sorted(changes.items())))
    if key not in _made:
        _made[key] = _export(kind, **changes)
    return _made[key]


def _export(kind: str, **changes: object) -> Exported:
    folder = Path(tempfile.mkdtemp(prefix="shardline-test-decoder-"))
    atexit.register(shutil.rmtree, folder, True)
    save_model(folder, kind, **changes)
    return Exported(folder, import_transformers_directory(folder))
