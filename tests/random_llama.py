"""A Llama with random weights, too large for a small device, with the docs model's tokenizer."""

import json
import shutil
from pathlib import Path

import torch

from planner.language.stand_ins import import_transformers

TOKENIZER = Path(__file__).parents[1] / "examples" / "docs_model"
FILES = ("tokenizer.json", "tokenizer_config.json")
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}


def save_random_llama(folder: Path, **changes: int) -> Path:
    """Write a transformers directory: 311 MB of float32 in 26 blocks, unless ``changes``."""
    library = import_transformers()
    torch.manual_seed(0)
    vocabulary = json.loads((TOKENIZER / "config.json").read_text())["vocab_size"]
    sizes = {**SIZES, **changes, "vocab_size": vocabulary}
    # Larger than a trained model begins with: tokens then lie apart, and the text says something.
    config = library.LlamaConfig(**sizes, initializer_range=0.06)
    library.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": []}))
    for name in FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def greedy_text(folder: Path, prompt: str, tokens: int) -> str:
    """What transformers itself writes after the prompt, in float32."""
    library = import_transformers()
    model = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None  # generate() does not take an empty list
    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    text: str = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    return text
