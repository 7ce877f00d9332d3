"""When two language models count as the same one."""

import numpy as np
import pytest

import bench.decoder_equality
from bench.decoder_equality import TOLERANCE, judge

THEIRS = np.array([[5.0, 1.0, 0.0], [0.0, 3.0, 3.0 + TOLERANCE], [1.0, 0.0, 7.0]], np.float32)
BEST = np.array([0, 2, 2])


def test_the_same_tokens_are_no_near_ties_however_close_they_are() -> None:
    found = judge(BEST, THEIRS, THEIRS)
    assert (found.same, found.near_ties, found.wrong) == (3, 0, 0)
    assert found.is_good
    assert found.largest == 7


def test_another_token_is_a_near_tie_only_where_two_are_close() -> None:
    tied = judge(np.array([0, 1, 2]), THEIRS, THEIRS)
    assert (tied.same, tied.near_ties, tied.wrong) == (2, 1, 0)
    assert tied.is_good
    other = judge(np.array([1, 2, 2]), THEIRS, THEIRS)
    assert (other.same, other.near_ties, other.wrong) == (2, 0, 1)
    assert not other.is_good


@pytest.mark.parametrize("off", [2 * TOLERANCE, float("nan")])
def test_logits_beyond_the_tolerance_are_another_model_s(off: float) -> None:
    ours = THEIRS.copy()
    ours[1, 0] += off
    assert not judge(BEST, ours, THEIRS).is_good


def test_a_difference_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.decoder_equality", "--models", "gpt2,llama"])
    monkeypatch.setattr(bench.decoder_equality, "plan_all", lambda *_: [])
    for answers, code in (({"gpt2": True, "llama": True}, 0), ({"gpt2": False, "llama": True}, 1)):
        compared = {kind: lambda *_, answer=answer: answer for kind, answer in answers.items()}
        monkeypatch.setattr(
            bench.decoder_equality, "compare", lambda _f, kind, *_, made=compared: made[kind]()
        )
        with pytest.raises(SystemExit) as ended:
            bench.decoder_equality.main()
        assert ended.value.code == code
    assert "| model | stages | prompt |" in capsys.readouterr().out
