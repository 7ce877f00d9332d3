from collections.abc import Callable

from planner.activations import peak_activation_bytes
from tests.planner.conftest import Cached


def test_a_segment_needs_at_least_what_enters_and_leaves_it(small: Callable[[str], Cached]) -> None:
    graph = small("Plain").graph
    peaks = peak_activation_bytes(graph, batch_size=3)
    assert len(peaks) == graph.num_segments
    entering = [spec.bytes_per_image for spec in graph.model.inputs]
    entering += [cut.spec.bytes_per_image for cut in graph.cuts]
    for segment, peak, entered in zip(graph.segments, peaks, entering, strict=True):
        assert peak >= 3 * max(entered, segment.output_bytes_per_image)


def test_activations_grow_with_the_batch(small: Callable[[str], Cached]) -> None:
    graph = small("Plain").graph
    one, four = (peak_activation_bytes(graph, size) for size in (1, 4))
    assert four == [4 * peak for peak in one]
