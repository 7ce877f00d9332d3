"""`shardline plan hf:DIR`: what it writes and says, and which options it refuses."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.decoder_models import save_model, save_tokenizer

DRAWER = """
devices:
  - {name: quick, kind: other-amd64, speed: 2.0, memory: 400m}
  - {name: slow, kind: raspberry-pi-4, count: 2, memory: 400m}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "tiny", "llama")
    save_tokenizer(folder)
    return folder


def test_a_plan_is_built_verified_and_reported(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--stages", 2, "--context", 64, "--sequences", 2, "--quantise", "int8")
    done = run("plan", f"hf:{model}", *options, "--out", tmp_path)
    assert done.code == 0, done
    assert "sharded equals whole: logits differ by" in done.out
    assert "int8: perplexity" in done.out
    assert "of memory at its peak" in done.out
    plan = json.loads((tmp_path / "tiny" / "plan.json").read_text())
    assert plan["decoding"]["context_tokens"] == 64
    assert plan["decoding"]["sequences"] == 2
    assert plan["decoding"]["quantisation"] == "int8"
    assert (tmp_path / "tiny" / "tokenizer" / "tokenizer.json").is_file()


def test_devices_give_a_placement_and_a_verdict(run: Run, model: Path, tmp_path: Path) -> None:
    drawer = tmp_path / "drawer.yaml"
    drawer.write_text(DRAWER)
    options = ("--context", 200, "--sequences", 40, "--devices", drawer, "--json")
    done = run("plan", f"hf:{model}", *options, "--out", tmp_path)
    assert done.code == 0, done
    plan = json.loads(done.out)
    assert plan["verdict"]["chosen"] in ("single", "replicas", "pipeline", "mixed")
    assert "tokens/s" in plan["verdict"]["reason"]
    assert "a guess: nothing is published of decoding" in plan["prediction"]["based_on"]


def test_cuts_are_listed(run: Run, model: Path) -> None:
    done = run("plan", f"hf:{model}", "--list-cuts", "--json")
    assert done.code == 0, done
    assert [cut["scope"] for cut in json.loads(done.out)] == [f"model.layers.{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--codec", "int8"), "hidden states of language models travel as float32"),
        (("--what-if", "--devices", "x.yaml"), "weighs codecs"),
        (("--calibration", "x"), "--text is what quantised weights are measured on"),
        (("--weights", "random"), "everything about a language model is in its folder"),
        (("--seed", 3), "everything about a language model is in its folder"),
        (("--input", "32x32"), "everything about a language model is in its folder"),
        (("--max-accuracy-drop", 2.0), "travel without loss"),
    ],
)
def test_options_of_image_models_are_refused(
    run: Run, tmp_path: Path, options: tuple[object, ...], reason: str
) -> None:
    done = run("plan", "hf:anything", *options, "--out", tmp_path)
    assert done.code == 2, done
    assert reason in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--context", 64), "--context is for language models"),
        (("--sequences", 2), "--sequences is for language models"),
        (("--chunk", 2), "--chunk is for language models"),
        (("--quantise", "int8"), "--quantise is for language models"),
        (("--text", "x"), "--text is for language models"),
    ],
)
def test_options_of_language_models_are_refused_for_others(
    run: Run, options: tuple[object, ...], reason: str
) -> None:
    done = run("plan", "torchvision:resnet18", *options)
    assert done.code == 2, done
    assert reason in " ".join(done.err.split())


def test_devices_of_a_measured_profile_are_refused_before_the_model_is_read(
    run: Run, tmp_path: Path
) -> None:
    drawer = tmp_path / "drawer.yaml"
    drawer.write_text("devices:\n  - {name: pi, kind: raspberry-pi-4, profile: measured.json}\n")
    done = run("plan", "hf:no-such-folder", "--devices", drawer)
    assert done.code == 2, done
    assert "measures image models only" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--quantise", "int3"), "expected one of none, int8, int4"),
        (("--text", "README.md"), "give --quantise, too"),
        (("--context", 32, "--chunk", 33), "longer than --context 32"),
        (
            ("--context", 64_001),
            "would be 1,001 messages, and the broker keeps 1,000 for a receiver",
        ),
        (("--context", 5001, "--chunk", 5), "give --chunk 6 or more"),
        (("--batch", 5, "--sequences", 4), "there are caches for --sequences 4"),
        (("--sequences", 300), "--sequences 300: a language model's plan has at most 256"),
        (("--batch", 300), "--batch 300: a language model's plan has at most 256"),
        (("--context", 2_000_000), "--context 2,000,000: a language model's plan has at most 1,04"),
        (("--devices", "measured.json"), "describe the devices in a YAML file"),
        (("--devices", "nowhere.yaml"), "nowhere.yaml"),
        (("--text", "nowhere", "--quantise", "int8"), "cannot be read as UTF-8 text"),
        (("--name", "a/b"), "a/b"),
        (("--device", "a/b"), "a/b"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_the_model_is_read(
    run: Run, options: tuple[object, ...], reason: str
) -> None:
    done = run("plan", "hf:no-such-folder", *options)
    assert done.code == 2, done
    assert reason in " ".join(done.err.split())
