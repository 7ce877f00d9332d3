"""Small random transformers directories of every family, saved as bfloat16 or float32."""

import json
from pathlib import Path

import numpy as np
import torch

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 640,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KINDS = ("gpt2", "llama", "qwen2", "qwen3", "mistral")


def make_config(kind: str, **changes: object):
    from planner.language.stand_ins import import_transformers

    library = import_transformers()
    if kind == "gpt2":
        sizes = {
            "vocab_size": 320,
            "n_embd": 64,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 640,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        return library.GPT2Config(**{**sizes, **changes})
    if kind == "llama":
        return library.LlamaConfig(**{**SIZES, **changes})
    if kind == "qwen2":
        return library.Qwen2Config(**{**SIZES, "tie_word_embeddings": True, **changes})
    if kind == "qwen3":
        return library.Qwen3Config(**{**SIZES, "head_dim": 32, **changes})
    return library.MistralConfig(**{**SIZES, "sliding_window": 16, **changes})


def save_model(
    folder: Path, kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """Write config.json and model.safetensors of a random model whose answers say something."""
    from planner.export import quiet
    from planner.language.stand_ins import import_transformers

    library = import_transformers()
    library.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    with quiet():
        model = library.AutoModelForCausalLM.from_config(make_config(kind, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Random initialisation leaves every token much alike; this makes them differ.
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5)
    with quiet():
        model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return folder


def read_model(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (rows, tokens, vocabulary) of transformers' own model in float32."""
    from planner.export import quiet
    from planner.language.stand_ins import import_transformers

    with quiet(), torch.no_grad():
        library = import_transformers()
        model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()


def save_tokenizer(folder: Path, vocabulary_size: int = 320) -> Path:
    """A byte-level BPE trained on this project's README, with few enough tokens for the models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    readme = Path(__file__).parent.parent / "README.md"
    tokenizer.train_from_iterator([readme.read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
