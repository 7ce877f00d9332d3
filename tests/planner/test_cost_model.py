import pytest

from planner.cost_model import receive_ms, relay_ms, send_ms, stage_costs
from planner.problem import DeviceCosts, Problem, RelayCosts


@pytest.mark.parametrize(("size_bytes", "measured_ms"), [(100_000, 1.3), (803_000, 5.2)])
def test_the_relay_line_goes_through_the_measurements(size_bytes: int, measured_ms: float) -> None:
    assert relay_ms(size_bytes) == pytest.approx(measured_ms, rel=0.05)
    assert receive_ms(size_bytes) + send_ms(size_bytes) == pytest.approx(relay_ms(size_bytes))


def test_a_stage_pays_for_receiving_computing_sending_and_for_its_cuts() -> None:
    device = DeviceCosts("d", (1.0, 2.0, 4.0), RelayCosts(0.5, 1e-3), cut_byte_ms=1e-2)
    problem = Problem((device,), (0,) * 3, (0,) * 3, (100, 200, 300, 50))
    middle = stage_costs(problem, device, 1, 2)
    assert middle is not None
    assert middle.relay_ms == pytest.approx(0.6 * (0.5 + 0.2) + 0.4 * (0.5 + 0.3))
    assert middle.compute_ms == pytest.approx(2.0 + 1e-2 * (200 + 300))
    whole = stage_costs(problem, device, 0, 3)
    assert whole is not None
    assert whole.compute_ms == pytest.approx(7.0)  # inputs and results are no cuts
