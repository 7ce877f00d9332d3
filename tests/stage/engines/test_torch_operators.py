"""Every operator of the torch engine against onnxruntime with its optimiser off."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from shards.reader import Shard
from stage.engines.torch_eager import TorchEngine
from stage.engines.torch_ops.registry import OPERATORS

ShardOf = Callable[[onnx.ModelProto], Shard]

IMAGE = ("batch", 4, 9, 7)
TABLE = ("batch", 6)
BATCH = "batch"


@dataclass
class Data:
    """A graph input of random values."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float = -3
    high: float = 3

    def values(self, batch_size: int, seed: int) -> np.ndarray:
        shape = [batch_size if d == BATCH else d for d in self.shape]
        values = np.random.default_rng(seed).uniform(self.low, self.high, shape)
        return (values > 0 if self.dtype == "bool" else values).astype(self.dtype)


@dataclass
class Case:
    operator: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 20

    def model(self) -> onnx.ModelProto:
        names, graph_inputs, initializers = [], [], []
        for index, value in enumerate(self.inputs):
            names.append("" if value is None else f"in{index}")
            if isinstance(value, Data):
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                graph_inputs.append(helper.make_tensor_value_info(names[-1], kind, value.shape))
            elif value is not None:
                initializers.append(numpy_helper.from_array(np.asarray(value), names[-1]))
        outputs = [f"out{index}" for index in range(self.outputs)]
        node = helper.make_node(self.operator, names, outputs, name="node", **self.attributes)
        values = [ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph([node], "case", graph_inputs, values, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:  # onnx infers nothing for GroupNormalization
                output.type.CopyFrom(model.graph.input[0].type)
        return model


def F(*shape: int) -> np.ndarray:  # noqa: N802
    """A float constant."""
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)


def P(*shape: int) -> np.ndarray:  # noqa: N802
    """A positive float constant."""
    return np.abs(F(*shape)) + np.float32(0.1)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def scalar(value: float, dtype: str = "float32") -> np.ndarray:
    return np.array(value, dtype=dtype)


X, T = Data(IMAGE), Data(TABLE)
POSITIVE = Data(TABLE, low=0.1, high=3)
SMALL = Data(TABLE, low=-0.9, high=0.9)
WHOLE = Data(TABLE, "int64", low=-20, high=20)
FLAGS = Data(TABLE, "bool")
LINE = Data((BATCH, 4, 11))
CUBE = Data((BATCH, 2, 5, 6, 7))


# Unary operators that take any number.
# fmt: off
ANYWHERE = (
    "Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN",
    "Mish", "Neg", "Relu", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Softplus", "Softsign", "Tan", "Tanh",
)
# fmt: on


def unary() -> list[Case]:
    return [
        *(Case(name, [T]) for name in ANYWHERE),
        *(Case(name, [POSITIVE]) for name in ("Log", "Sqrt", "Reciprocal")),
        *(Case(name, [SMALL]) for name in ("Acos", "Asin")),
        Case("Not", [FLAGS]),
        Case("Neg", [WHOLE]),
    ]


def arithmetic() -> list[Case]:
    row, whole = F(6), ints(3, -4, 5, -6, 7, 2)
    return [
        *(Case(name, [T, row]) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean")),
        *(Case(name, [WHOLE, whole]) for name in ("Add", "Div", "Mod", "Max", "Min")),
        *(Case(name, [T, row, F(1, 6)]) for name in ("Sum", "Mean", "Max", "Min")),
        *(Case(name, [FLAGS, row > 0]) for name in ("And", "Or", "Xor")),
        *(
            Case(name, [WHOLE, whole])
            for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
        ),
        Case("Mod", [T, row], {"fmod": 1}),
        Case("Mod", [WHOLE, whole], {"fmod": 1}),
        Case("Pow", [POSITIVE, scalar(1.5)]),
        Case("Pow", [T, scalar(2, "int64")]),
        Case("Where", [FLAGS, T, scalar(0)]),
        Case("IsInf", [T]),
        Case("IsInf", [np.array([np.inf, -np.inf, 1], np.float32)], {"detect_negative": 0}),
    ]


def activations() -> list[Case]:
    return [
        Case("LeakyRelu", [T], {"alpha": 0.2}),
        Case("PRelu", [X, F(4, 1, 1)]),
        Case("ThresholdedRelu", [T], {"alpha": 0.5}),
        Case("Elu", [T], {"alpha": 0.7}),
        Case("Celu", [T], {"alpha": 0.7}),
        Case("Selu", [T], {"alpha": 1.5, "gamma": 1.1}),
        Case("Clip", [T]),
        Case("Clip", [T, scalar(-1)]),
        Case("Clip", [T, None, scalar(1)]),
        Case("Clip", [T, scalar(0), scalar(6)]),
        Case("Clip", [WHOLE, scalar(-3, "int64"), scalar(5, "int64")]),
        Case("HardSigmoid", [T]),
        Case("HardSigmoid", [T], {"alpha": 1 / 6, "beta": 0.4}),
        Case("Gelu", [T]),
        Case("Gelu", [T], {"approximate": "tanh"}),
        Case("Softmax", [X]),
        Case("Softmax", [X], {"axis": 1}),
        Case("LogSoftmax", [X], {"axis": -2}),
    ]


def convolutions() -> list[Case]:
    weight, bias = F(6, 4, 3, 2), F(6)
    cases = [
        {},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0]},
        {"dilations": [2, 3]},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "kernel_shape": [3, 2]},
    ]
    transposed = [
        {"strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 0]},
        {"strides": [2, 2], "pads": [1, 0, 0, 1]},
        {"strides": [3, 2], "dilations": [2, 1]},
        {"strides": [3, 2], "output_shape": [26, 14]},
        {"strides": [3, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
    ]
    return [
        *(Case("Conv", [X, weight, bias], attributes) for attributes in cases),
        Case("Conv", [X, weight]),
        Case("Conv", [X, F(8, 1, 3, 3), F(8)], {"group": 4, "pads": [1] * 4}),
        Case("Conv", [LINE, F(3, 4, 3), F(3)], {"pads": [1, 0]}),
        Case("Conv", [CUBE, F(3, 2, 2, 3, 2)], {"pads": [1] * 6}),
        *(Case("ConvTranspose", [X, F(4, 5, 3, 3), F(5)], attributes) for attributes in transposed),
        Case("ConvTranspose", [X, F(4, 2, 3, 3)], {"group": 2}),
        Case("ConvTranspose", [LINE, F(4, 3, 3), F(3)], {"strides": [2]}),
        Case("ConvTranspose", [CUBE, F(2, 3, 2, 2, 2)], {"strides": [2, 2, 2]}),
    ]


def pools() -> list[Case]:
    three = {"kernel_shape": [3, 3], "strides": [2, 2]}
    both = [
        {"kernel_shape": [2, 3]},
        three,
        {**three, "pads": [1, 1, 1, 1]},
        {**three, "pads": [0, 1, 1, 0]},
        {**three, "pads": [2, 2, 2, 2]},
        {**three, "ceil_mode": 1},
        {**three, "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {**three, "ceil_mode": 1, "pads": [0, 0, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [0, 1, 0, 1]},
        {**three, "dilations": [2, 2]},
        {**three, "dilations": [2, 1], "pads": [1, 1, 1, 1]},
        {**three, "auto_pad": "SAME_UPPER"},
        {**three, "auto_pad": "SAME_LOWER"},
        {**three, "auto_pad": "VALID"},
    ]
    counted = [{**attributes, "count_include_pad": 1} for attributes in both[2:6]]
    return [
        *(Case(name, [X], a) for a in both for name in ("MaxPool", "AveragePool")),
        *(Case("AveragePool", [X], attributes) for attributes in counted),
        *(
            Case(name, [value], {"kernel_shape": [2] * rank, "strides": [2] * rank})
            for name in ("MaxPool", "AveragePool")
            for value, rank in ((LINE, 1), (CUBE, 3))
        ),
        *(
            Case(name, [value])
            for name in ("GlobalAveragePool", "GlobalMaxPool")
            for value in (X, LINE, CUBE)
        ),
    ]


def linear() -> list[Case]:
    return [
        Case("MatMul", [T, F(6, 5)]),
        Case("MatMul", [X, F(7, 3)]),
        Case("MatMul", [X, F(4, 7, 3)]),
        Case("MatMul", [T, F(6)]),
        Case("Gemm", [T, F(6, 5), F(5)]),
        Case("Gemm", [T, F(5, 6), F(5)], {"transB": 1}),
        Case("Gemm", [T, F(5, 6)], {"transB": 1}),
        Case("Gemm", [T, F(6, 5), F(1, 5)], {"alpha": 0.5, "beta": 2.0}),
        Case("Gemm", [Data((6, BATCH)), F(6, 5)], {"transA": 1, "alpha": 0.5}),
        Case("Einsum", [X, F(7, 3)], {"equation": "bchw,wk->bchk"}),
    ]


def normalization() -> list[Case]:
    return [
        Case("BatchNormalization", [X, F(4), F(4), F(4), P(4)], {"epsilon": 1e-3}),
        Case("BatchNormalization", [T, F(6), F(6), F(6), P(6)]),
        Case("InstanceNormalization", [X, F(4), F(4)]),
        Case("GroupNormalization", [X, F(2), F(2)], {"num_groups": 2}),
        Case("GroupNormalization", [X, F(4), F(4)], {"num_groups": 2}, opset=21),
        Case("LayerNormalization", [X, F(7), F(7)]),
        Case("LayerNormalization", [X, F(4, 9, 7)], {"axis": 1, "epsilon": 1e-3}),
        Case("LpNormalization", [X], {"axis": 1}),
        Case("LpNormalization", [T], {"p": 1}),
        Case("LRN", [X], {"size": 3, "alpha": 0.1, "bias": 2.0}),
        Case("LRN", [X], {"size": 5, "beta": 0.5}),
    ]


def layout() -> list[Case]:
    return [
        Case("Dropout", [X]),
        Case("Dropout", [X, scalar(0.5), scalar(0, "bool")], outputs=2),
        Case("Shape", [X], {"start": 1, "end": -1}),
        Case("Reshape", [X, ints(0, -1, 7)]),
        Case("Reshape", [X, ints(-1, 6)]),
        Case("Reshape", [Data((BATCH, 0)), ints(0, 3)], {"allowzero": 1}),
        Case("Flatten", [X]),
        Case("Flatten", [X], {"axis": 0}),
        Case("Flatten", [X], {"axis": -1}),
        Case("Transpose", [X]),
        Case("Transpose", [X], {"perm": [0, 2, 3, 1]}),
        Case("Squeeze", [Data((BATCH, 1, 5, 1)), ints(1, -1)]),
        Case("Squeeze", [Data((2, 1, 5, 1))]),
        Case("Unsqueeze", [X, ints(-1, 0)]),
        Case("Expand", [Data((BATCH, 1, 5)), ints(2, 1, 4, 1)]),
        Case("Expand", [X, ints(1)]),
        Case("Tile", [T, ints(2, 3)]),
        Case("Concat", [X, Data((BATCH, 2, 9, 7)), X], {"axis": 1}),
        Case("Concat", [X, X], {"axis": -1}),
        Case("Split", [X, ints(1, 3)], {"axis": 1}, 2),
        Case("Split", [X], {"axis": 1, "num_outputs": 2}, 2),
        Case("Split", [X], {"axis": -1, "num_outputs": 3}, 3),
        Case("Split", [X], {"axis": 1}, 4, opset=17),
        Case("DepthToSpace", [X], {"blocksize": 2}),
        Case("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
        Case("SpaceToDepth", [Data((BATCH, 3, 4, 6))], {"blocksize": 2}),
    ]


def indexing() -> list[Case]:
    return [
        Case("Gather", [X, ints(0, -1, 2)], {"axis": 1}),
        Case("Gather", [X, np.array([[0, -1], [1, 2]], np.int32)], {"axis": 2}),
        Case("Gather", [X, scalar(-1, "int64")], {"axis": -1}),
        Case("Gather", [F(5, 3), Data((BATCH, 4), "int64", -4, 4)]),
        Case("GatherElements", [F(5, 6), Data(TABLE, "int64", -4, 4)]),
        Case("Slice", [X, ints(1), ints(3), ints(1)]),
        Case("Slice", [X, ints(-3, 1), ints(2**62, -1), ints(-2, 3), ints(1, 2)]),
        Case("Slice", [X, ints(-1, 5), ints(-(2**62), 0), ints(1, 2), ints(-1, -2)]),
        Case("Slice", [X, ints(0, 5), ints(1, 2)]),
        Case("ArgMax", [X], {"axis": 1}),
        Case("ArgMax", [X], {"axis": -1, "keepdims": 0}),
        Case("ArgMin", [X], {"axis": 2}),
        Case("TopK", [T, ints(3)], {}, 2),
        Case("TopK", [X, ints(2)], {"axis": 1, "largest": 0}, 2),
        *(
            Case("CumSum", [T, scalar(1, "int64")], {"exclusive": e, "reverse": r})
            for e in (0, 1)
            for r in (0, 1)
        ),
        Case("Trilu", [X]),
        Case("Trilu", [X, scalar(-1, "int64")], {"upper": 0}),
    ]


def creation() -> list[Case]:
    return [
        Case("Cast", [Data(TABLE, "uint8", 0, 255)], {"to": TensorProto.FLOAT}),
        Case("Cast", [T], {"to": TensorProto.INT64}),
        Case("Cast", [WHOLE], {"to": TensorProto.BOOL}),
        Case("Cast", [T], {"to": TensorProto.FLOAT16}),
        Case("CastLike", [T, ints(1)]),
        Case("Constant", [], {"value_ints": [1, 2]}),
        Case("Constant", [], {"value_float": 1.5}),
        Case("Constant", [], {"value": numpy_helper.from_array(F(2, 3))}),
        Case("ConstantOfShape", [ints(2, 3)]),
        Case("ConstantOfShape", [ints(2)], {"value": numpy_helper.from_array(ints(7))}),
        Case("Range", [scalar(2, "int64"), scalar(11, "int64"), scalar(3, "int64")]),
        Case("Range", [scalar(1), scalar(-1), scalar(-0.3)]),
        Case("Range", [scalar(2, "int64"), scalar(1, "int64"), scalar(3, "int64")]),
    ]


def padding() -> list[Case]:
    pads = ints(0, 1, 2, 0, 0, 0, 1, 3)
    return [
        *(Case("Pad", [X, pads], {"mode": m}) for m in ("constant", "reflect", "edge", "wrap")),
        Case("Pad", [X, pads, scalar(-1.5)]),
        Case("Pad", [X, ints(-1, 2, 0, -3), scalar(2), ints(3, 1)]),
        Case("Pad", [WHOLE, ints(0, 1, 0, 1), scalar(9, "int64")]),
    ]


def reductions() -> list[Case]:
    names = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    return [
        *(Case("Reduce" + n, [POSITIVE, ints(1)], {"keepdims": 0}) for n in names),
        *(Case("Reduce" + n, [Data(IMAGE, low=0.5, high=1.1), ints(-1, 1)]) for n in names),
        Case("ReduceMean", [X]),
        Case("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}),
        Case("ReduceSum", [WHOLE, ints(1)]),
        Case("ReduceMax", [WHOLE, ints(1)]),
        Case("ReduceProd", [WHOLE, ints(0)]),
        Case("ReduceMean", [X], {"axes": [2, 3], "keepdims": 0}, opset=17),
    ]


def resizes() -> list[Case]:
    bigger, smaller = np.float32([1, 1, 2.0, 1.7]), np.float32([1, 1, 0.6, 0.5])
    coordinates = (
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
    )
    nearest = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    return [
        *(
            Case("Resize", [X, None, s], {"mode": m, "coordinate_transformation_mode": c})
            for m in ("nearest", "linear")
            for c in coordinates
            for s in (bigger, smaller)
        ),
        *(
            Case(
                "Resize",
                [X, None, bigger],
                {"nearest_mode": m, "coordinate_transformation_mode": "asymmetric"},
            )
            for m in nearest
        ),
        Case("Resize", [Data((3, 4, 9, 7)), None, None, ints(3, 4, 5, 14)], {"mode": "linear"}),
        Case("Resize", [X, None, None, ints(18, 1)], {"axes": [2, 3], "mode": "linear"}),
        Case("Resize", [X, None, np.float32([1.5, 2])], {"axes": [2, 3]}),
    ]


CASES = [
    *unary(),
    *arithmetic(),
    *activations(),
    *convolutions(),
    *pools(),
    *linear(),
    *normalization(),
    *layout(),
    *indexing(),
    *creation(),
    *padding(),
    *reductions(),
    *resizes(),
]

NOT_IN_ONNXRUNTIME = {"RMSNormalization", "Swish"}
"""Of opsets 23 and 24, newer than what onnxruntime 1.23.2 runs; tested against numpy below."""


def case_name(case: Case) -> str:
    details = [f"{key}={value}" for key, value in case.attributes.items() if key != "value"]
    return "-".join([case.operator, *details]).replace(" ", "")


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == {case.operator for case in CASES} - {"Constant"} | NOT_IN_ONNXRUNTIME


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_operator_agrees_with_onnxruntime(case: Case, shard_of: ShardOf) -> None:
    shard = shard_of(case.model())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        str(shard.graph_path), options, providers=["CPUExecutionProvider"]
    )
    engine = TorchEngine(shard, threads=1, prepack=True)
    for batch_size in (1, 3):
        inputs = {
            f"in{index}": value.values(batch_size, index)
            for index, value in enumerate(case.inputs)
            if isinstance(value, Data)
        }
        for array in inputs.values():
            array.flags.writeable = False
        expected = session.run(None, inputs)
        actual = list(engine.run(inputs).values())
        assert [a.dtype for a in actual] == [e.dtype for e in expected]
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6, strict=True)
    engine.close()


def test_swish_and_rms_normalization_agree_with_numpy(shard_of: ShardOf) -> None:
    x = T.values(3, seed=0)
    scale = P(6)
    expected = {
        "Swish": x / (1 + np.exp(-1.5 * x)),
        "RMSNormalization": x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale,
    }
    for case in (
        Case("Swish", [T], {"alpha": 1.5}),
        Case("RMSNormalization", [T, scale]),
    ):
        case.opset = 24
        engine = TorchEngine(shard_of(case.model()), threads=1, prepack=False)
        np.testing.assert_allclose(
            engine.run({"in0": x})["out0"], expected[case.operator], rtol=1e-5, atol=1e-6
        )
