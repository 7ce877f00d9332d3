"""The language model that this repository carries is small, open, and what its pages say."""

import json
import re
from pathlib import Path

from planner.language.checkpoint import open_checkpoint
from planner.language.facts import check_directory, end_tokens

FOLDER = Path(__file__).parents[2] / "examples" / "docs_model"


def test_it_is_made_of_what_can_be_opened_safely_and_is_small() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert files == {
        *("README.md", "train.py", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert sum((FOLDER / name).stat().st_size for name in files) < 3_000_000


def test_weights_tokenizer_and_configuration_belong_together() -> None:
    config = check_directory(FOLDER)
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())
    ids = {*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])}
    assert sorted(ids) == list(range(config["vocab_size"]))
    ends = [t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|endoftext|>"]
    assert list(end_tokens(FOLDER, config, config["vocab_size"])) == ends


def test_its_page_says_its_size() -> None:
    page = (FOLDER / "README.md").read_text()
    checkpoint = open_checkpoint(FOLDER)
    numbers = [checkpoint.read(name).size for name in checkpoint.entries]
    assert f"{sum(numbers):,} parameters" in page
    assert re.search(r"held-out perplexity, as written: \d+\.\d a token", page)
