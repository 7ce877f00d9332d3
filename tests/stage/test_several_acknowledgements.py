"""Several acknowledgements are one: when the last is there."""

from concurrent.futures import Future

from stage.settling import when_all_are_settled


def futures(count: int) -> list["Future[int]"]:
    return [Future() for _ in range(count)]


def test_it_is_called_once_when_the_last_has_ended_in_any_order() -> None:
    calls: list[int] = []
    waiting = futures(3)
    when_all_are_settled(waiting, lambda: calls.append(1))
    for future in reversed(waiting[1:]):
        future.set_result(1)
        assert calls == []
    waiting[0].set_exception(ValueError())
    assert calls == [1]


def test_what_has_ended_before_counts() -> None:
    calls: list[int] = []
    waiting = futures(2)
    for future in waiting:
        future.set_result(1)
    when_all_are_settled(waiting, lambda: calls.append(1))
    assert calls == [1]
    when_all_are_settled([], lambda: calls.append(2))
    assert calls == [1, 2]
