"""Imports a path to an `.onnx` file: makes its batch dimension dynamic, and proves that it is."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, ValueInfoProto, version_converter

from contract.errors import EngineError, ModelError
from contract.plan import ImageInput, TensorInput
from contract.tensor_spec import BATCH, TensorSpec
from planner.compare import compare
from planner.importers.image_input import ImageDefaults, decide_image_input
from planner.importers.imported_model import (
    DEFAULT_WEIGHTS,
    Array,
    ImportedModel,
    ImportOptions,
)
from planner.onnx_graph import IR_VERSION, dtype_name, read_opsets
from planner.progress import Progress
from planner.sample_inputs import sample_images, sample_tensor
from planner.scratch import ScratchFolder
from shards.session import run_session, session_options

MIN_OPSET = 15  # the first with Shape(start, end), which the batch size is read with
TARGET_OPSET = 17
PROOF_SEED = 11


class OnnxReference:
    """The file as it is, in onnxruntime without any optimisation, behind numpy's normalisation.

    A file made for one batch size is fed that many images at a time, the last of them repeated.
    """

    def __init__(
        self, path: Path, model_input: ImageInput | TensorInput, fixed_batch: int | None
    ) -> None:
        self._session = _plain_session(path)
        self._feed = self._session.get_inputs()[0].name
        self._is_float = "float" in self._session.get_inputs()[0].type
        self._input, self._fixed_batch = model_input, fixed_batch

    def __call__(self, array: Array) -> dict[str, Array]:
        """Outputs by name, for what stage 0 takes: uint8 (N, C, H, W) images, or the raw tensor."""
        if isinstance(self._input, ImageInput) and self._is_float:
            mean = np.array(self._input.mean, np.float32).reshape(1, -1, 1, 1)
            std = np.array(self._input.std, np.float32).reshape(1, -1, 1, 1)
            array = (array.astype(np.float32) / np.float32(255) - mean) / std
        count = len(array)
        size = self._fixed_batch or count
        parts = []
        for start in range(0, count, size):
            part = array[start : start + size]
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            fed = {self._feed: np.concatenate([part, padding])}
            parts.append(run_session(self._session, fed))
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}


def import_onnx_file(spec: str, options: ImportOptions, progress: Progress) -> ImportedModel:
    """See :func:`planner.importers.import_model`."""
    path = Path(spec)
    _refuse_torch_options(path, options)
    progress(f"reading {path.name}", 0.0)
    model = _upgrade(path, _load(path))
    value = _only_input(path, model)
    fixed_batch, source = _input_spec(path, value, options)
    model_input = _decide_input(path, source, options)
    folder = ScratchFolder()
    target = folder.path / "exported.onnx"
    with folder.writing(model.ByteSize()):
        _write_dynamic(model, value.name, source, target)
    del model
    progress("proving the batch dimension", 0.5)
    _prove_batch(path, target, source)
    try:
        reference = OnnxReference(path, model_input, fixed_batch)
    except EngineError as error:
        raise ModelError(f"{path}: {error}; export it again with opset 17 to 20") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    progress("proving the batch dimension", 1.0)
    return ImportedModel(
        name=path.name,
        weights=f"{path.name} (sha256 {digest[:16]})",
        folder=folder,
        graph_path=target,
        reference=reference,
        reference_name=f"onnxruntime {onnxruntime.__version__} without optimisation",
        input=model_input,
    )


def _refuse_torch_options(path: Path, options: ImportOptions) -> None:
    if options.weights != DEFAULT_WEIGHTS:
        raise ModelError(
            f"{path}: an ONNX file brings its own weights, got --weights {options.weights}; leave "
            "the option out"
        )
    if options.num_classes is not None or options.model_args:
        raise ModelError(
            f"{path}: an ONNX file cannot be changed by --num-classes or --model-arg; export the "
            "model again as you want it"
        )


def _load(path: Path) -> ModelProto:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a path to an ONNX model")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError, or onnx's for missing external data
        raise ModelError(
            f"{path}: cannot be read as ONNX, or its external data is missing: {error!s:.200}; "
            "copy it again, with all files that belong to it"
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path}: not an ONNX model, or empty; export it again")
    return model


def _upgrade(path: Path, model: ModelProto) -> ModelProto:
    opset = read_opsets(model).get("", 0)
    if opset >= MIN_OPSET:
        return model
    try:
        return version_converter.convert_version(model, TARGET_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own
        raise ModelError(
            f"{path}: opset {opset} is too old, and cannot be converted to {TARGET_OPSET} "
            f"({error!s:.200}); export it again with opset 17 to 20"
        ) from error


def _only_input(path: Path, model: ModelProto) -> ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(
            f"{path}: expected a model with one input, got {len(inputs)} ({names}); export it with "
            "the others fixed"
        )
    only: ValueInfoProto = inputs[0]
    return only


def _input_spec(
    path: Path, value: ValueInfoProto, options: ImportOptions
) -> tuple[int | None, TensorSpec]:
    """The batch size that the file was made for, if it is fixed, and the input with any batch."""
    tensor = value.type.tensor_type
    dims: list[int | None] = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    ]
    dtype = dtype_name(tensor.elem_type)
    if dtype is None or not dims:
        raise ModelError(
            f"{path}: input {value.name!r} has no shape, or elements that a message cannot carry "
            f"({TensorProto.DataType.Name(tensor.elem_type)}); expected (batch, …)"
        )
    if options.input_size is not None:
        if len(dims) != 4 or any(
            dim not in (None, size) for dim, size in zip(dims[2:], options.input_size, strict=True)
        ):
            raise ModelError(
                f"{path}: input {value.name!r} is made for {dims}, --input asks for "
                f"{options.input_size}; export it again for that size"
            )
        dims[2:] = options.input_size
    if None in dims[1:]:
        raise ModelError(
            f"{path}: input {value.name!r} has other variable dimensions than the batch ({dims}); "
            "say --input HxW for an image, or export it again with fixed dimensions"
        )
    shape = (BATCH, *dims[1:])
    return dims[0], TensorSpec.model_validate({"name": value.name, "dtype": dtype, "shape": shape})


def _decide_input(
    path: Path, source: TensorSpec, options: ImportOptions
) -> ImageInput | TensorInput:
    fits = (
        len(source.shape) == 4
        and source.shape[1] in (1, 3)
        and source.dtype in ("float32", "uint8")
    )
    if options.preprocess == "image" and not fits:
        raise ModelError(
            f"{path}: its input is {source.describe()}, an image is float32 or uint8 (batch, 1 or "
            "3, height, width); leave out --preprocess image"
        )
    if options.preprocess == "none" or not fits:
        return TensorInput()
    _, channels, height, width = (int(dim) if dim != BATCH else 0 for dim in source.shape)
    options = replace(options, channels=1 if channels == 1 else 3, input_size=(height, width))
    if source.dtype == "uint8":  # normalises its pixels itself; these leave 0..255 as they are
        nothing = {"mean": (0.0,) * channels, "std": (1 / 255,) * channels}
        options = replace(options, mean=nothing["mean"], std=nothing["std"])
    return decide_image_input(ImageDefaults(), options, str(path))


def _write_dynamic(model: ModelProto, name: str, source: TensorSpec, target: Path) -> None:
    """Write the model with any batch size: whatever was noted of shapes inside is forgotten."""
    graph = model.graph
    del graph.value_info[:]
    for value in graph.input:
        if value.name == name:
            for dim, size in zip(value.type.tensor_type.shape.dim, source.shape, strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
                else:
                    dim.dim_value = size
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    model.ir_version = min(model.ir_version, IR_VERSION)
    onnx.save(
        model,
        target,
        save_as_external_data=True,
        location=target.with_suffix(".data").name,
        size_threshold=1024,
    )


def _prove_batch(path: Path, target: Path, source: TensorSpec) -> None:
    """Two images together must give what each gives alone."""
    if source.dtype == "uint8" and len(source.shape) == 4:
        _, channels, height, width = (0 if dim == BATCH else int(dim) for dim in source.shape)
        batch: Array = sample_images(2, channels, height, width, PROOF_SEED)
    else:
        batch = sample_tensor(source, 2, PROOF_SEED)
    reason = ""
    try:
        session = _plain_session(target)
        together = run_session(session, {source.name: batch})
        alone = [run_session(session, {source.name: batch[i : i + 1]}) for i in range(2)]
        expected = {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
        comparison = compare(together, expected)
        if not comparison.equal:
            reason = f"a batch of two differs by {comparison.max_abs_difference:.3g}"
    except (EngineError, ValueError) as error:  # ValueError: shapes that do not fit each other
        reason = str(error)[:300]
    if reason:
        raise ModelError(
            f"{path}: cannot run with a variable batch size ({reason}); export it again with a "
            "dynamic batch dimension, for example "
            "torch.onnx.export(..., dynamo=True, dynamic_shapes=({0: 'batch'},))"
        )


def _plain_session(path: Path) -> onnxruntime.InferenceSession:
    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base below Exception
        raise EngineError(
            f"onnxruntime {onnxruntime.__version__} cannot load it: {error!s:.300}"
        ) from error
