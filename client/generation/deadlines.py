"""When a language model's batch is late, and what its tokens teach of that. Pure.

``active_s`` is the clock of deadlines, ``now`` the monotonic one, both in seconds.
"""

from collections.abc import Iterable

from client.feed import Feed
from client.generation.chunks import count_chunks
from client.generation.progress import GAP_PATIENCE_S, token_deadline_s
from client.ledger import Entry
from client.retry import ACTIVE_STEP_S, MAX_DEADLINE_S
from client.settings import MAX_PROMPTS_MESSAGES


def first_token_deadline_s(entry: Entry, feed: Feed) -> float:
    """What an attempt that goes out now is given."""
    assert entry.generation is not None
    generation = entry.generation
    return feed.prefills.deadline_s(generation.transcript.length, generation.late_prefills)


def note_tokens(
    entry: Entry, attempt: int, feed: Feed, active_s: float, now: float, *, is_new: bool
) -> None:
    """An attempt is alive: it brought a token, ``is_new`` unless another had brought it before.

    An attempt that has been replaced teaches as much as the latest: where every one comes too late,
    nobody else could. But the latest, which ends it, may still be at the prompt.
    """
    generation, sent = entry.generation, entry.attempts[attempt]
    assert generation is not None
    is_latest = attempt == entry.attempt
    if generation.transcript.is_diverged(attempt):
        return
    if not sent.has_answered:
        # It stood behind the attempt before it until that one was last heard of.
        behind_s = active_s - generation.heard_at + ACTIVE_STEP_S
        feed.prefills.add(min(sent.taken_s(active_s, now), behind_s), sent.sent_tokens)
        sent.has_answered, generation.late_prefills = True, 0
    elif is_new:
        feed.attempts.add(generation.silent_s(active_s, now))
        generation.late_tokens = 0
    elif not is_latest:
        return  # it repeats itself, or another
    generation.heard_at, generation.told_at = active_s, now
    if is_latest:
        generation.idle_attempts = 0
    if entry.why:
        return
    if is_latest:
        entry.deadline_s = token_deadline_s(feed.attempts.p99_s, generation.late_tokens)
        entry.retry_at = active_s + entry.deadline_s
    elif generation.is_prefilling:  # the latest has the stages to itself only now
        tokens = entry.attempts[entry.attempt].sent_tokens
        entry.deadline_s = feed.prefills.deadline_s(tokens, generation.late_prefills)
        entry.retry_at = max(entry.retry_at, active_s + entry.deadline_s)


def note_gap(entry: Entry, attempt: int, active_s: float) -> None:
    """A token has overtaken the one that is missing; of an attempt that lives, the latest."""
    if attempt == entry.attempt:
        entry.retry_at = min(entry.retry_at, active_s + GAP_PATIENCE_S)


def has_to_wait(
    entry: Entry, open_entries: Iterable[Entry], active_s: float, chunk_tokens: int
) -> bool:
    """Whether a text that is due has to let others go first: all at once would fill a queue.

    Those that are due themselves do not count: what they have sent is lost.
    """
    if entry.generation is None:
        return False
    under_way = sum(
        count_chunks(other.attempts[other.attempt].sent_tokens, chunk_tokens)
        for other in open_entries
        if other is not entry
        and other.generation is not None
        and other.generation.is_prefilling
        and other.retry_at > active_s
    )
    own = count_chunks(entry.generation.transcript.length, chunk_tokens)
    return under_way > 0 and under_way + own > MAX_PROMPTS_MESSAGES


def is_behind_a_prompt(entry: Entry, open_entries: Iterable[Entry], active_s: float) -> bool:
    """Whether its next token may be late because its stages compute another's prompt."""
    generation = entry.generation
    if entry.why or generation is None or generation.is_prefilling:
        return False
    others = (other.generation for other in open_entries if other is not entry)
    waits = any(other is not None and other.is_prefilling for other in others)
    return waits and active_s - generation.heard_at < MAX_DEADLINE_S
