"""`torchvision:NAME` and `module:callable`: weights, sizes, classes, and what can go wrong."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from contract.errors import ModelError, WeightsError
from contract.plan import ImageInput
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.importers.image_input import ImageDefaults, decide_image_input
from planner.importers.torch_module import work_out_of_place
from planner.importers.torchvision_models import image_defaults, import_models, list_models
from planner.sample_inputs import sample_images
from planner.whole import open_whole
from tests.planner.conftest import SMALL
from tests.planner.small_models import Overwriting, Plain

PLAIN = f"{SMALL}:Plain"
SMALL_INPUT = {"input_size": (32, 32)}
NARROW = {"num_classes": 10, "width_mult": 0.35}


def image_of(imported: object) -> ImageInput:
    image = imported.input  # type: ignore[attr-defined]
    assert isinstance(image, ImageInput)
    return image


def test_every_classification_model_of_the_registry_is_known() -> None:
    assert len(list_models()) >= 80
    assert {"resnet18", "maxvit_t", "mnasnet0_5"} <= set(list_models())
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18"} & set(list_models())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", "did you mean .*resnet18"),
        ("torchvision:resnet81", "list_models"),
        ("torchvision:fcn_resnet50", "no such classification model"),
        ("hf:gpt2", "is a language model, which takes no images"),
        ("resnet18", "expected torchvision:NAME"),
        ("no_such_module:build", "cannot import module 'no_such_module'"),
        (f"{SMALL}:Nothing", "no callable 'Nothing'"),
        (f"{SMALL}:not_a_module", "returned int, expected a torch.nn.Module"),
    ],
)
def test_what_is_no_model_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_model(spec, ImportOptions(weights="random"))


def test_a_model_of_other_classes_and_size_is_adapted(tmp_path: Path) -> None:
    options = ImportOptions(weights="random", num_classes=10, input_size=(32, 32))
    imported = import_model("torchvision:resnet18", options)
    graph = segment_graph(canonicalise(imported))
    image = image_of(imported)
    assert (image.height, image.width, image.resize) == (32, 32, 32)
    assert graph.model.inputs[0].describe() == "uint8 (batch, 3, 32, 32)"
    assert graph.model.outputs[0].describe() == "float32 (batch, 10)"
    images = sample_images(3, 3, 32, 32, seed=1)
    answer = open_whole(graph.model, threads=1).run({"image": images})["output"]
    np.testing.assert_allclose(answer, imported.reference(images)["output"], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "resize"), [(None, 256), ((224, 224), 256), ((112, 112), 128), ((32, 48), 32)]
)
def test_another_size_keeps_the_share_of_the_picture(
    size: tuple[int, int] | None, resize: int
) -> None:
    image = decide_image_input(ImageDefaults(), ImportOptions(input_size=size), "m")
    assert image.resize == resize


def test_preprocessing_comes_from_the_registry_and_may_be_overridden() -> None:
    defaults = image_defaults(import_models(), "swin_t")
    image = decide_image_input(defaults, ImportOptions(), "m")
    assert (image.resize, image.height, image.interpolation) == (232, 224, "bicubic")
    assert image.mean == (0.485, 0.456, 0.406)
    options = ImportOptions(weights="random", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    overridden = decide_image_input(ImageDefaults(), options, "m")
    assert (overridden.mean, overridden.std) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "mean has 1 values, expected 3"),
        ({"std": (1.0, 0.0, 1.0)}, "expected values above 0"),
        ({"input_size": (0, 5)}, "0x5 cannot be used"),
    ],
)
def test_senseless_preprocessing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decide_image_input(ImageDefaults(), ImportOptions(**options), "m")  # type: ignore[arg-type]


def test_a_size_that_the_model_cannot_run_at_is_refused() -> None:
    options = ImportOptions(weights="random", input_size=(32, 32))
    with pytest.raises(ModelError, match=r"cannot run on a 3x32x32 input.*--input"):
        import_model("torchvision:alexnet", options)


def test_arguments_that_the_builder_does_not_take_are_refused() -> None:
    options = ImportOptions(weights="random", model_args={"widht_mult": 2})
    with pytest.raises(ModelError, match="widht_mult"):
        import_model("torchvision:mobilenet_v2", options)


def test_a_failed_download_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> object:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(WeightsError, match=r"cannot download .*--weights FILE"):
        import_model("torchvision:resnet18")


def test_downloaded_weights_bring_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_models().get_model("squeezenet1_1", weights=None).eval()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: module.state_dict()
    )
    imported = import_model("torchvision:squeezenet1_1", ImportOptions(input_size=(64, 64)))
    assert imported.labels[0] == "tench"
    assert len(imported.labels) == 1000
    assert imported.labels_mean_something
    assert imported.weights == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"


def test_trained_weights_do_not_take_another_number_of_classes() -> None:
    with pytest.raises(ModelError, match=r"cannot be used with .*num_classes"):
        import_model("torchvision:resnet18", ImportOptions(num_classes=10))


def test_a_safetensors_file_says_how_its_model_is_built(tmp_path: Path) -> None:
    models = import_models()
    torch.manual_seed(3)
    module = models.get_model("mobilenet_v2", weights=None, **NARROW).eval()
    path = tmp_path / "digits.safetensors"
    save_file(
        module.state_dict(),
        path,
        {
            "model_args": json.dumps(NARROW),
            "input": "32x32",
            "mean": "[0.5, 0.5, 0.5]",
            "std": "[0.25, 0.25, 0.25]",
            "labels": json.dumps([f"digit {n}" for n in range(10)]),
        },
    )
    imported = import_model("torchvision:mobilenet_v2", ImportOptions(weights=str(path)))
    image = image_of(imported)
    assert (image.height, image.width) == (32, 32)
    assert image.std == (0.25, 0.25, 0.25)
    assert imported.labels[3] == "digit 3"
    assert imported.labels_mean_something
    assert imported.weights.startswith("digits.safetensors (sha256 ")
    images = sample_images(2, 3, 32, 32, seed=1)
    with torch.inference_mode():
        expected = module((torch.from_numpy(images).float() / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(imported.reference(images)["output"], expected, atol=1e-6)
    answer = open_whole(canonicalise(imported), threads=1).run({"image": images})["output"]
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_files_of_torch_weights_are_loaded(suffix: str, wrapped: bool, tmp_path: Path) -> None:
    module = Plain().eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(module.state_dict(), path)
    else:
        state = module.state_dict()
        torch.save({"state_dict": state} if wrapped else state, path)
    imported = import_model(PLAIN, ImportOptions(weights=str(path), **SMALL_INPUT))  # type: ignore[arg-type]
    images = sample_images(2, 3, 32, 32, seed=1)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (image_of(imported).mean, image_of(imported).std)
    )
    with torch.inference_mode():
        expected = module((torch.from_numpy(images).float() / 255 - mean) / std).numpy()
    np.testing.assert_allclose(imported.reference(images)["output"], expected, atol=1e-6)
    assert imported.labels_mean_something


def broken_file(kind: str, folder: Path) -> Path:
    path = folder / f"weights{'.safetensors' if 'safetensors' in kind else '.pth'}"
    match kind:
        case "missing":
            pass
        case "another kind of file":
            path = folder / "weights.bin"
            path.write_bytes(b"x")
        case "classes":
            torch.save(Plain(num_classes=7).state_dict(), path)
        case "names":
            torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, path)
        case "code":
            torch.save({"a": Path("x")}, path)
        case "no state dict":
            torch.save([1, 2, 3], path)
        case "corrupt safetensors":
            path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
        case "truncated safetensors":
            save_file(Plain().state_dict(), path)
            path.write_bytes(path.read_bytes()[:-100])
        case "corrupt pth":
            path.write_bytes(b"PK\x03\x04 but no archive")
        case "metadata safetensors":
            save_file(Plain().state_dict(), path, {"mean": "half"})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such weights file"),
        ("another kind of file", "expected a file ending in"),
        ("classes", r"2 tensors of another shape \(head.weight is \(7, 16\).*--num-classes"),
        ("names", "8 tensors missing .*2 tensors unknown"),
        ("code", "not a file of weights alone"),
        ("no state dict", "expected a state dict"),
        ("corrupt safetensors", "not a safetensors file"),
        ("truncated safetensors", "corrupt or truncated"),
        ("corrupt pth", "corrupt"),
        ("metadata safetensors", "its metadata says mean='half'"),
    ],
)
def test_unusable_weights_say_why(kind: str, message: str, tmp_path: Path) -> None:
    path = broken_file(kind, tmp_path)
    with pytest.raises(WeightsError, match=message):
        import_model(PLAIN, ImportOptions(weights=str(path), **SMALL_INPUT))  # type: ignore[arg-type]


def test_a_callable_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_here_only.py").write_text(
        f"from {SMALL} import Plain\n\ndef build(width):\n    return Plain(width=width)\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ImportOptions(model_args={"width": 4}, **SMALL_INPUT)  # type: ignore[arg-type]
    imported = import_model("found_here_only:build", options)
    assert imported.weights == "as found_here_only:build makes them"
    assert canonicalise(imported).weights["second.weight"].shape == (4, 4, 3, 3)


def test_work_in_place_is_kept_where_the_answer_depends_on_it() -> None:
    module = Overwriting().eval().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    expected = module(images)
    work_out_of_place(module, images)
    assert module.relu.inplace
    assert torch.equal(module(images), expected)


def test_work_in_place_is_given_up_where_it_makes_no_difference() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.ReLU6(inplace=True))
    work_out_of_place(module.eval().requires_grad_(False), torch.randn(2, 3, 32, 32))
    assert not module[1].inplace
    assert not module[2].inplace


def test_a_model_that_depends_on_values_cannot_be_exported() -> None:
    options = ImportOptions(weights="random", **SMALL_INPUT)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="must not depend on values of the data"):
        import_model(f"{SMALL}:DataDependent", options)


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    options = ImportOptions(weights="random", **SMALL_INPUT)  # type: ignore[arg-type]
    first, second = (canonicalise(import_model(PLAIN, options)).info.digest for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_a_callable_may_import_torchvision_itself(tmp_path: Path) -> None:
    """In a process of its own, since torchvision is imported once: beside a CPU-only torch, pip's
    default torchvision fails to import without what the importer does about it."""
    (tmp_path / "own_net.py").write_text(
        "def make():\n"
        "    from torchvision.models import resnet18\n"
        "    return resnet18(weights=None, num_classes=3)\n"
    )
    code = (
        "from planner.importers.torch_callable import _call;"
        "print(type(_call('own_net:make', {})).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "ResNet", done.stderr
