"""Train the docs model: a small Llama that writes in the manner of this repository's own pages.

The text is that of the files below as they were at one commit, read from git, so that the same
command gives the same model when the pages have changed. It is split by heading: every twentieth
section is held out, the one after it chooses the epoch to keep, the rest is for training. The
tokenizer, a byte-level BPE, is trained on the training part alone. What is written is a
transformers directory: `config.json`, `model.safetensors` (float16), `tokenizer.json` and what
belongs to them.
"""

import argparse
import copy
import hashlib
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from planner.language.stand_ins import import_transformers

transformers = import_transformers()
transformers.utils.logging.disable_progress_bar()
HERE = Path(__file__).parent
COMMIT = "55f6b24eff1102411dd680ed5191dafdc639ad78"
FILES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "bench/cluster/README.md",
    "deploy/k3s/README.md",
    "examples/README.md",
    "examples/photographs/README.md",
    "images/README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("README", "deploy", "faults", "hardware", "journal", "limits", "plan-schema"),
            *("planning", "quickstart-pi", "replan", "report", "scale", "security", "settings"),
            *("topics", "troubleshooting", "try-it", "wire-format"),
        )
    ),
)
DECISIONS = "docs/adr/"
"""Every page of this folder, too."""
EVERY = 20
"""One section of so many is held out, and another one chooses the epoch."""
END = "<|endoftext|>"
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
WINDOW = 512  # tokens of a training text
BATCH = 2
PEAK_RATE, WEIGHT_DECAY, WARM_UP, CLIP = 3e-3, 0.1, 0.05, 1.0
PROMPT = "## Why a stage"
WORST_PERPLEXITY = 40.0
MAX_BYTES = 3_000_000


def read_pages(commit: str) -> list[str]:
    """The text of every page at that commit."""
    root = HERE.parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"git {arguments[0]}: {done.stderr.strip()}; train in a full clone")
        return done.stdout

    there = git("ls-tree", "-r", "--name-only", commit, DECISIONS).split()
    return [git("show", f"{commit}:{name}") for name in (*FILES, *sorted(there))]


def split_sections(pages: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Training, choosing and held-out sections; a section begins with a heading. Pure."""
    sections = [
        section
        for page in pages
        for section in re.split(r"(?m)^(?=#{1,3} )", page)
        if len(section) > 40
    ]
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for index, section in enumerate(sections):
        part = {EVERY - 2: 1, EVERY - 1: 2}.get(index % EVERY, 0)
        parts[part].append(section)
    return parts


def train_tokenizer(sections: list[str]) -> Tokenizer:
    """A byte-level BPE (Sennrich et al., arXiv:1508.07909; the bytes as GPT-2 has them)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sections, trainer)
    return tokenizer


def to_tokens(tokenizer: Tokenizer, sections: list[str]) -> Tensor:
    """All of them in a row, int64 (tokens,), with an end token behind each."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([id for text in sections for id in (*tokenizer.encode(text).ids, end)])


def perplexity(model: Any, tokens: Tensor) -> float:
    """Of each token but the first of its window, by those before it in the window."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for window in torch.split(tokens, WINDOW):
            if len(window) > 1:
                logits = model(window[None]).logits[0, :-1]
                total += functional.cross_entropy(logits, window[1:], reduction="sum").item()
                count += len(window) - 1
    return math.exp(total / count)


def train(model: Any, tokens: Tensor, choosing: Tensor, epochs: int) -> tuple[int, float]:
    """Train, and load the epoch that does best on ``choosing``; its number and perplexity."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    steps = len(tokens) // (BATCH * WINDOW)
    # Norms and biases are not decayed; the embedding is: it is the head, too.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        PEAK_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_RATE, total_steps=epochs * steps, pct_start=WARM_UP
    )
    best, best_state = (math.inf, 0), model.state_dict()
    for epoch in range(1, epochs + 1):
        model.train()
        # Other borders in every epoch: what a window begins with is not always the same.
        shift = int(torch.randint(WINDOW, (1,), generator=generator))
        windows = torch.roll(tokens, -shift)[: steps * BATCH * WINDOW].view(-1, WINDOW)
        losses = 0.0
        for chosen in torch.split(torch.randperm(len(windows), generator=generator), BATCH):
            batch = windows[chosen]
            logits = model(batch).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            losses += loss.item()
        found = perplexity(model, choosing)
        if (found, epoch) < best:
            best, best_state = (found, epoch), copy.deepcopy(model.state_dict())
        print(
            f"epoch {epoch}: training {math.exp(losses / steps):.1f}, choosing {found:.1f}",
            flush=True,
        )
    model.load_state_dict(best_state)
    return best[1], best[0]


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the transformers directory, the weights in float16."""
    end = tokenizer.token_to_id(END)
    model.config.eos_token_id, model.config.bos_token_id = end, None
    model.generation_config = transformers.GenerationConfig(eos_token_id=end)
    copy.deepcopy(model).half().save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        model_max_length=SIZES["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def main() -> int:
    """Train, measure, write the files and return the exit code."""
    parser = argparse.ArgumentParser(description="Train the docs model.")
    parser.add_argument("--out", type=Path, default=HERE, help="output folder")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default=COMMIT, help="of the text")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in another order would give slightly different weights

    pages = read_pages(options.commit)
    digest = hashlib.sha256("".join(pages).encode()).hexdigest()
    fit, choose, held_out = split_sections(pages)
    tokenizer = train_tokenizer(fit)
    tokens, choosing, unseen = (to_tokens(tokenizer, part) for part in (fit, choose, held_out))
    print(
        f"{len(pages)} pages, sha256 {digest[:16]}: {len(tokens):,} tokens for training, "
        f"{len(choosing):,} to choose the epoch, {len(unseen):,} held out",
        flush=True,
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    start = time.monotonic()
    epoch, _ = train(model, tokens, choosing, options.epochs)
    print(f"kept epoch {epoch} of {options.epochs}, trained in {time.monotonic() - start:.0f} s")

    save(model, tokenizer, options.out)
    written = transformers.AutoModelForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    assert all(
        t.dtype == torch.float16 for t in load_file(options.out / "model.safetensors").values()
    )
    found = perplexity(written, unseen)
    size = sum(path.stat().st_size for path in options.out.glob("*.*") if path.suffix != ".py")
    print(f"held-out perplexity, as written: {found:.1f} a token; {size:,} bytes")
    prompt = to_tokens(tokenizer, [PROMPT])[None, :-1]
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 0}):
        text = written.generate(prompt, max_new_tokens=120, pad_token_id=0, **sampling)
        print(f"--- {'sampled' if sampling['do_sample'] else 'greedy'}")
        print(tokenizer.decode(text[0].tolist()))
    return 0 if found < WORST_PERPLEXITY and size < MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
