"""Text to tokens and back, as it comes; the plan's tokenizer and no other."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from client.tokenizer import (
    DEAR_CHARACTERS,
    HELD_TOKENS,
    TextStream,
    TextTokenizer,
)
from contract.errors import PromptError, PromptTooLongError, SettingsError
from tests.generation.fake_decoder import END, make_tokenizer

TEXT = "Grüße an die 12 Wölfe 🐺🐺 – naïve café, 日本語 and plain words, words, words. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with merges, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.enable_truncation(3)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder)


def streamed(tokenizer: TextTokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.add(token) for token in ids), stream.finish()]


def test_a_prompt_is_not_cut_off_unasked(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 3
    assert tokenizer.decode(ids) == TEXT


def test_a_stream_never_shows_half_a_character(tokenizer: TextTokenizer) -> None:
    pieces = streamed(tokenizer, tokenizer.encode("wolves: "), tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces, "no character of this text has several tokens: choose another"
    assert sum(map(bool, pieces)) > 10


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_text_comes_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, prompt: str
) -> None:
    tokenizer = _bytes(tmp_path_factory)
    pieces = streamed(tokenizer, tokenizer.encode(prompt), tokenizer.encode(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


_made: dict[str, TextTokenizer] = {}


def _bytes(factory: pytest.TempPathFactory) -> TextTokenizer:
    if "bytes" not in _made:
        folder = factory.mktemp("bytes")
        make_tokenizer(folder)
        _made["bytes"] = TextTokenizer(folder)
    return _made["bytes"]


def test_what_is_never_completed_is_shown_at_the_end(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    half = list("é".encode())[:1]
    assert streamed(_bytes(tmp_path_factory), [], [*b"caf", *half]) == ["c", "a", "f", "", "\ufffd"]


def test_bytes_that_are_no_character_do_not_hold_up_the_rest(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pieces = streamed(_bytes(tmp_path_factory), [], [0xFF, 0xFE, *b"ab"])
    assert pieces == ["", "", "\ufffd\ufffda", "b", ""]


def test_special_tokens_are_not_shown(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "".join(streamed(_bytes(tmp_path_factory), [], [*b"ab", END, *b"c"])) == "abc"


@given(st.binary(max_size=150))
def test_bytes_come_as_the_whole_of_them_is_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    tokenizer = _bytes(tmp_path_factory)
    pieces = streamed(tokenizer, [], list(content))
    assert "".join(pieces) == content.decode(errors="replace")


@pytest.mark.parametrize("token", [0xFF, END])
def test_what_never_becomes_text_costs_no_more_with_each_token(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    tokenizer = _bytes(tmp_path_factory)
    decode, lengths = tokenizer.decode, []

    def watched(token_ids: list[int]) -> str:
        lengths.append(len(token_ids))
        return decode(token_ids)

    monkeypatch.setattr(tokenizer, "decode", watched)
    stream = TextStream(tokenizer, list(b"a prompt"))
    pieces = [stream.add(token) for _ in range(500)]
    assert max(lengths) < 50
    assert len(lengths) <= 3 * 500
    if token != END:
        assert len("".join(pieces)) > 450, "it comes at the end only"
    pieces += [stream.add(letter) for letter in b"text"] + [stream.finish()]
    assert "".join(pieces) == (500 * "\ufffd" if token != END else "") + "text"


def test_characters_that_every_token_ends_in_the_middle_of_come_whole(tmp_path: Path) -> None:
    """Of scripts whose characters share their first bytes, merges may lie across characters."""
    text = "日本語の文字は三つのバイトから成る。それでも一つずつ読める。🐺は四つ。" * 5
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((mapped, _),) = byte_level.pre_tokenize_str(text)
    parts = [mapped[:1], *(mapped[at : at + 3] for at in range(1, len(mapped), 3))]
    vocabulary = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = TextTokenizer(tmp_path)
    pieces = streamed(opened, [], [vocabulary[part] for part in parts])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(map(len, pieces)) <= HELD_TOKENS + 2


def test_the_first_space_after_many_special_tokens_is_kept(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = tokenizer.token_to_id("<|end|>")
    pieces = streamed(TextTokenizer(tmp_path), [0], [1, *(3 * HELD_TOKENS * [special]), 0])
    assert "".join(pieces) == " two one"


def test_the_first_space_of_a_continuation_is_kept(tmp_path: Path) -> None:
    """A tokenizer as Llama's leaves out the space before a text's first word, of the whole text."""
    vocabulary = {"▁one": 0, "▁two": 1, "three": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = TextTokenizer(tmp_path)
    assert opened.decode([1]) == "two"
    assert streamed(opened, [0], [1, 2, 0]) == [" two", "three", " one", ""]


def test_a_text_begins_as_the_tokenizer_wants_and_a_dialogue_as_its_template(
    tmp_path: Path,
) -> None:
    make_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", END)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    opened = TextTokenizer(tmp_path)
    assert opened.encode("a") == [END, ord("a")]
    assert opened.encode_chat([{"role": "user", "content": "a"}]) == [ord("a")]


def test_a_text_that_utf_8_cannot_say_is_refused(tokenizer: TextTokenizer) -> None:
    """As a shell's argument of other bytes than UTF-8."""
    with pytest.raises(PromptError, match=r"character 3 .* surrogate"):
        tokenizer.encode("caf\udce9")


def test_a_text_that_is_longer_than_any_tokens_is_refused(tokenizer: TextTokenizer) -> None:
    longest = max(map(len, tokenizer._tokenizer.get_vocab()))
    room = DEAR_CHARACTERS // longest + 1
    assert tokenizer.encode("a" * room * longest, room)
    with pytest.raises(PromptTooLongError, match=rf"characters.*room for {room:,} tokens"):
        tokenizer.encode("a" * (room * longest + 1), room)


def test_a_text_that_costs_little_is_encoded_whatever_its_length(tokenizer: TextTokenizer) -> None:
    """A tokenizer that folds spaces, or runs of what it does not know, makes few tokens of it."""
    longest = max(map(len, tokenizer._tokenizer.get_vocab()))
    assert tokenizer.encode("a" * (10 * longest + 1), 10)


def test_a_panic_of_the_library_is_an_error_like_others(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3's: no Exception."""

    class Broken:
        def decode(self, *_: object, **__: object) -> str:
            raise PanicException("index out of bounds")

    monkeypatch.setattr(tokenizer, "_tokenizer", Broken())
    with pytest.raises(PromptError, match="index out of bounds"):
        tokenizer.decode([1])


def test_only_the_plan_s_tokenizer_is_used(tmp_path: Path) -> None:
    sha256 = make_tokenizer(tmp_path)
    TextTokenizer(tmp_path, sha256)
    with pytest.raises(SettingsError, match=r"expected sha256 0000.*got"):
        TextTokenizer(tmp_path, "0" * 64)
    with pytest.raises(SettingsError, match=r"nowhere/tokenizer\.json: no such file"):
        TextTokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="no tokenizer that can be read"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="no tokenizer that can be read"):
        TextTokenizer(tmp_path)
