"""A language model that is no model: each token is a hash of all before it. With its stages, whose
messages a test may lose, repeat or hold back, and a tokenizer of bytes."""

import hashlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery, Will
from contract import topics
from contract.activation import Activation, BatchId, Header, decode, encode
from contract.decoder import (
    FINISHED,
    IDS,
    SAMPLING,
    CacheSpec,
    Decoding,
    Finish,
    Sampling,
    Step,
    TokenInput,
    decode_sampling,
)
from contract.nack import Nack, NackReason
from contract.plan import (
    ModelInfo,
    Plan,
    Replica,
    ShardFile,
    StageSpec,
    Verification,
    compute_plan_id,
    place,
)
from contract.status import DeviceState, DeviceStatus, ShardState
from contract.tensor_spec import TensorSpec

VOCABULARY, END = 257, 256
HIDDEN = TensorSpec(name="hidden", dtype="float32", shape=("batch", "tokens", 4))
TOKENS_IN = TensorSpec(name=IDS, dtype="int64", shape=("batch", "tokens"))
LOGITS = TensorSpec(name="logits", dtype="float32", shape=("batch", VOCABULARY))


def next_token(history: Sequence[int], sampling: Sampling, ends: bool = False) -> int:
    """A letter or a space; with ``ends`` now and then the end token."""
    seed = sampling.seed if sampling.temperature else 0
    digest = hashlib.sha256(repr((list(history), seed)).encode()).digest()
    if ends and digest[1] < 12:
        return END
    return b"abcdefghijklmnop rstu wxyz"[digest[0] % 26]


def whole_text(prompt: Sequence[int], sampling: Sampling, ends: bool = False) -> list[int]:
    """What the undisturbed model writes: its tokens up to an end token or ``max_position``."""
    history = list(prompt)
    while len(history) < sampling.max_position:
        history.append(next_token(history, sampling, ends))
        if history[-1] == END:
            break
    return history[len(prompt) :]


def make_text_plan(
    devices: Sequence[Sequence[str]],
    cluster: str,
    *,
    batch_size: int = 4,
    sequences: int = 8,
    context_tokens: int = 128,
    chunk_tokens: int = 4,
    tokenizer_sha256: str = "",
    name: str = "text",
    digest: str = "0" * 64,
) -> Plan:
    """A placed plan whose shards nobody has."""
    count, file = len(devices), ShardFile(sha256="0" * 64, size_bytes=1)
    stages = tuple(
        StageSpec(
            stage_index=index,
            first_segment=index,
            end_segment=index + 1,
            inputs=(TOKENS_IN if index == 0 else HIDDEN,),
            outputs=(LOGITS if index == count - 1 else HIDDEN,),
            graph=file,
            weights=file,
            weight_bytes=1,
            flops_per_image=1,
            cache=CacheSpec(layers=1, kv_heads=1, head_size=4),
        )
        for index in range(count)
    )
    decoding = Decoding(
        context_tokens=context_tokens,
        sequences=sequences,
        chunk_tokens=chunk_tokens,
        tokenizer_sha256=tokenizer_sha256,
    )
    plan = Plan(
        plan_id=compute_plan_id(digest, stages, decoding, batch_size),
        name=name,
        model=ModelInfo(
            name="tests:text",
            weights="none",
            digest=digest,
            input=TokenInput(architecture="hash", vocabulary_size=VOCABULARY, end_tokens=(END,)),
        ),
        batch_size=batch_size,
        stages=stages,
        decoding=decoding,
        verified_with={"onnxruntime": "test"},
        verification=Verification(
            reference="none",
            images=1,
            tolerance=1e-4,
            max_abs_difference=0.0,
            max_abs_reference=1.0,
            spread_between_images=1.0,
            top1_agreement=1.0,
            conclusive=True,
        ),
    )
    return place(plan, [[Replica(device=d) for d in group] for group in devices], cluster)


def make_tokenizer(folder: Path) -> str:
    """A tokenizer of bytes, one token each, and an end token; its sha256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = {char: index for index, char in enumerate(_byte_characters())}
    assert sorted(order) == alphabet
    tokenizer = Tokenizer(models.BPE(vocab=order, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def _byte_characters() -> list[str]:
    """The character that stands for each byte in GPT-2's byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


@dataclass
class Cache:
    """What a stage knows of one attempt: all tokens so far, which rows have ended."""

    rows: list[list[int]]
    finish: list[Finish] = field(default_factory=list)
    position: int = -1


Fate = Callable[["FakeStage", Header, Step], int]
"""How often a message of a stage is sent: 0 loses it."""


class FakeStage:
    """One device: keeps caches, refuses gaps, hands on, and if it is the last one chooses tokens.

    ``fate`` decides over its outputs, ``hears`` whether it hears a message at all. ``choose`` may
    be replaced.
    """

    def __init__(
        self, connect: Connect, cluster: str, plan: Plan, device: str, ends: bool = False
    ) -> None:
        spec = plan.stage_of(device)
        assert spec is not None
        self.plan, self.device, self.cluster = plan, device, cluster
        self.stage_index, self.is_last = spec.stage_index, spec.stage_index == plan.num_stages - 1
        self.caches: dict[tuple[BatchId, int], Cache] = {}
        self.released: list[tuple[BatchId, int]] = []
        self.steps: list[tuple[Header, Step]] = []
        self.rows_of: Counter[int] = Counter()
        self.fate: Fate = lambda _stage, _header, _step: 1
        self.hears: Callable[[Header, Step], bool] = lambda _header, _step: True
        self.choose = lambda history, sampling: next_token(history, sampling, ends)
        self.results: list[bytes] = []
        self._lock = threading.Lock()
        self._connect = connect
        self.start()

    def start(self) -> None:
        """Come up with empty caches."""
        self.caches.clear()
        self.boot = secrets.randbits(53)
        self.connection = self._connect(
            ConnectionSettings(
                name=self.device,
                will=Will(self._status_topic, self._status(DeviceState.OFFLINE)),
            ),
            Callbacks(on_delivery=self._receive),
        )
        self.connection.subscribe(topics.input_filter(self.cluster, self.device))
        self.announce(DeviceState.ONLINE)

    def die(self) -> None:
        """Lose the connection without a word; the broker publishes the will."""
        self.connection.drop()  # type: ignore[attr-defined]

    def close(self) -> None:
        self.connection.close(forget_session=True)

    @property
    def _status_topic(self) -> str:
        return topics.status_topic(self.cluster, self.device)

    def _status(self, state: DeviceState) -> bytes:
        status = DeviceStatus(
            device=self.device,
            state=state,
            boot=self.boot,
            shard=ShardState.READY,
            plan_id=self.plan.plan_id,
            stage_index=self.stage_index,
        )
        return status.model_dump_json().encode()

    def announce(self, state: DeviceState) -> None:
        self.connection.publish(self._status_topic, self._status(state), retain=True)

    def forget(self) -> None:
        """Lose every cache, and stay."""
        with self._lock:
            self.caches.clear()

    def _receive(self, delivery: Delivery) -> None:
        activation = decode(delivery.payload)
        step = Step.of(dict(activation.header.scalars))
        with self._lock:
            self.steps.append((activation.header, step))
            if self.hears(activation.header, step):
                self._compute(activation, step)
        delivery.ack()

    def _compute(self, activation: Activation, step: Step) -> None:
        header = activation.header
        key = (header.batch_id, header.attempt)
        if step.release:
            self.released.append(key)
            self.caches.pop(key, None)
            if not self.is_last:
                target = replace(header, stage_index=self.stage_index + 1)
                self._publish(target, step, encode(target, activation.tensors))
            return
        ids = activation.tensors[IDS]
        sampling = decode_sampling(activation.tensors[SAMPLING])
        for other in [k for k in self.caches if k[0] == key[0] and k[1] < key[1]]:
            del self.caches[other]
        if step.position == 0 and key not in self.caches:
            self.caches[key] = Cache([[] for _ in sampling], [Finish.NOT_YET] * len(sampling))
        cache = self.caches.get(key)
        if cache is not None and step.position <= cache.position:
            return  # the same input twice: the broker has what came of it
        if cache is None or len(cache.rows[0]) != step.position:
            self.refuse(header, NackReason.CACHE_LOST)
            return
        for row, more in zip(cache.rows, ids.tolist(), strict=True):
            row.extend(more)
        cache.position = step.position
        self.rows_of[len(sampling)] += 1
        if not self.is_last:
            hidden = np.zeros((*ids.shape, 4), np.float32)
            target = replace(header, stage_index=self.stage_index + 1)
            tensors = {"hidden": hidden, IDS: ids, SAMPLING: activation.tensors[SAMPLING]}
            self._publish(target, step, encode(target, tensors))
        elif step.wants:
            self._sample(header, step, cache, sampling, activation.tensors[SAMPLING])

    def _sample(
        self,
        header: Header,
        step: Step,
        cache: Cache,
        sampling: Sequence[Sampling],
        tensor: np.ndarray,
    ) -> None:
        position = len(cache.rows[0])
        chosen = []
        for index, (row, how) in enumerate(zip(cache.rows, sampling, strict=True)):
            if cache.finish[index]:
                chosen.append(row[-1])
                continue
            token = self.choose(row, how)
            chosen.append(token)
            if token == END:
                cache.finish[index] = Finish.END_TOKEN
            elif position + 1 >= how.max_position:
                cache.finish[index] = Finish.MAX_POSITION
        told = Step(position)
        result = replace(header, stage_index=self.plan.num_stages, scalars=told.scalars(), trace=())
        ids = np.array(chosen, np.int64)[:, None]
        tensors = {IDS: ids, FINISHED: np.array(cache.finish, np.uint8)}
        self._publish(result, told, encode(result, tensors))
        if not all(cache.finish):
            back = Step(position, wants=True, returned=True)
            again = replace(header, stage_index=0, scalars=back.scalars(), trace=())
            self._publish(again, back, encode(again, {IDS: ids, SAMPLING: tensor}))

    def _publish(self, header: Header, step: Step, payload: bytes) -> None:
        if header.stage_index == self.plan.num_stages:
            topic = topics.result_topic(self.cluster, header.client, self.device)
            self.results.append(payload)
        else:
            topic = topics.input_topic(
                self.cluster,
                header.route[header.stage_index],
                header.plan_id,
                header.stage_index,
                self.device,
            )
        for _ in range(self.fate(self, header, step)):
            self.connection.publish(topic, payload)

    def refuse(self, header: Header, reason: NackReason) -> None:
        nack = Nack(
            plan_id=header.plan_id,
            epoch=f"{header.batch_id.epoch:016x}",
            seq=header.batch_id.seq,
            attempt=header.attempt,
            stage_index=self.stage_index,
            device=self.device,
            reason=reason,
            route=header.route,
            detail="as the test wants it",
        )
        topic = topics.nack_topic(self.cluster, header.client, self.device)
        self.connection.publish(topic, nack.model_dump_json().encode())
