"""What others have published about the boards, and what we make of it where nothing is. Pure data.

Nothing here was measured by us on a Pi. Each figure has its source or says that it is an estimate;
docs/hardware.md shows them to people. A measured profile replaces all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from contract.kind import Kind
from planner.problem import Link

MBIT_PER_S = 1e6 / 8

FLOPS_PER_IMAGE: Mapping[str, int] = MappingProxyType(
    {
        "mobilenet_v2": 608_324_864,
        "resnet18": 3_631_860_736,
        "resnet50": 8_194_152_960,
        "alexnet": 1_429_428_480,
        "vgg16": 30_956_116_480,
    }
)
"""Of torchvision's models at 224 x 224 with 1,000 classes, counted by planner/flops.py."""

NCNN_TO_ONNXRUNTIME = 2.09
"""onnxruntime's time by ncnn's, both on a Pi 5: the median over 13 detectors, from 1.25 to 2.87.
Source: visionanalysis.org/articles/ncnn-fp32-vs-onnx-fp32-rpi5."""
NCNN_TO_ONNXRUNTIME_V8_0 = 1.82
"""The same for cores without arithmetic in half precision (Armv8.0: A53, A72), which ncnn uses on a
Pi 5. Estimate: the mean of ResNet50 (351.25 by 186.18 ms) and MobileNetV1 (75.47 by 42.96 ms) on a
Cortex-A73. Source: gist.github.com/zihaomu/1cf236339099708a0c75aeef5620433e, 2022."""

VGG16_BY_RESNET50 = 547.09 / 262.83
"""On a Pi 4, for the boards that VGG16 was not run on. Estimate, but a better one than that by its
operations, which are 3.8 times as many."""

PI_5_CORE_SPEED = 0.5
"""One core of a Pi 5 by one of the machine that the relay's line was measured on
(planner/cost_model.py). Estimate. The other boards follow from it by sysbench on one core, events a
second: Pi 5 2737.49, Pi 4 1477.83, Pi 3+ 687.45. Source:
leoncode.co.uk/articles/raspberry-pi-benchmarks. The Zero 2 W from the 3B+ by their clocks."""

GIGABIT = 941 * MBIT_PER_S
"""What TCP gets of gigabit Ethernet on a Pi 4 and a Pi 5, by iperf3. Source:
mpr-projects.com, «RPi NAS: Part 3 Network Connections», 2024."""
WIRE_LATENCY_MS = 0.2  # estimate: one way, through one switch
USB_LATENCY_MS = 0.4  # estimate: the same, the port hanging on USB
WIFI_LATENCY_MS = 3.0  # estimate


@dataclass(frozen=True, slots=True)
class Board:
    """What a kind is taken for.

    ``whole_ms`` is ncnn's time for one image, by model, on all four cores, ``estimated_ms`` the
    same where none is published. ``one_core_ratio``: how many times as long ResNet50 takes on one
    of them. ``engine_factor`` makes onnxruntime's time of ncnn's. ``core_speed`` is one core by one
    of the machine that the relay's line was measured on.
    """

    whole_ms: Mapping[str, float]
    one_core_ratio: float
    engine_factor: float
    core_speed: float
    link: Link
    estimated_ms: Mapping[str, float] = field(default_factory=dict)


BOARDS: Mapping[Kind, Board] = MappingProxyType(
    {
        Kind.RASPBERRY_PI_5: Board(  # section of the Pi 5, 2.4 GHz
            whole_ms={
                "mobilenet_v2": 10.52,
                "resnet18": 19.96,
                "resnet50": 46.21,
                "alexnet": 21.36,
                "vgg16": 129.24,
            },
            one_core_ratio=89.43 / 46.21,
            engine_factor=NCNN_TO_ONNXRUNTIME,
            core_speed=PI_5_CORE_SPEED,
            link=Link(GIGABIT, GIGABIT, WIRE_LATENCY_MS),
        ),
        Kind.RASPBERRY_PI_4: Board(  # «Raspberry Pi 4 Model B Broadcom BCM2711B0 … (1.8GHz x 4)»
            whole_ms={
                "mobilenet_v2": 61.88,
                "resnet18": 123.12,
                "resnet50": 262.83,
                "alexnet": 76.40,
                "vgg16": 547.09,
            },
            one_core_ratio=534.11 / 262.83,
            engine_factor=NCNN_TO_ONNXRUNTIME_V8_0,
            core_speed=PI_5_CORE_SPEED * 1477.83 / 2737.49,
            link=Link(GIGABIT, GIGABIT, WIRE_LATENCY_MS),
        ),
        Kind.RASPBERRY_PI_3B_PLUS: Board(  # «Raspberry Pi 3 Model B+ … (1.4GHz x 4)», no vgg16
            whole_ms={
                "mobilenet_v2": 111.68,
                "resnet18": 271.93,
                "resnet50": 587.42,
                "alexnet": 159.09,
            },
            one_core_ratio=979.75 / 587.42,
            engine_factor=NCNN_TO_ONNXRUNTIME_V8_0,
            core_speed=PI_5_CORE_SPEED * 687.45 / 2737.49,
            # the maker's own: gigabit over USB 2.0, at most 300 Mbit/s
            link=Link(300 * MBIT_PER_S, 300 * MBIT_PER_S, USB_LATENCY_MS),
            estimated_ms={"vgg16": VGG16_BY_RESNET50 * 587.42},
        ),
        Kind.RASPBERRY_PI_ZERO_2_W: Board(  # «Raspberry Pi Zero 2 W … (1.0GHz x 4)», no vgg16
            whole_ms={
                "mobilenet_v2": 147.39,
                "resnet18": 353.45,
                "resnet50": 782.63,
                "alexnet": 272.18,
            },
            one_core_ratio=1802.79 / 782.63,
            engine_factor=NCNN_TO_ONNXRUNTIME_V8_0,
            core_speed=PI_5_CORE_SPEED * 687.45 / 2737.49 / 1.4,
            # the maker's rating of its Wi-Fi; both directions share the air, which is not modelled
            link=Link(35 * MBIT_PER_S, 35 * MBIT_PER_S, WIFI_LATENCY_MS),
            estimated_ms={"vgg16": VGG16_BY_RESNET50 * 782.63},
        ),
    }
)
"""Times: Tencent/ncnn, benchmark/README.md, averages, 4 threads, random weights, half-precision
storage. Its AlexNet is Caffe's, with grouped convolutions. The maker's rates: see docs/hardware.md.
"""

OTHER_LINK = Link(GIGABIT, GIGABIT, WIRE_LATENCY_MS)
"""Of a device that is none of the boards, and of a broker's machine nobody says anything of."""
