"""All rows, in the order of PROTOCOL.md's table."""

from tests.faults import (
    bad_messages,
    broker_faults,
    client_faults,
    clock_and_memory,
    network_faults,
    plan_faults,
    stage_deaths,
)
from tests.faults.row import Row

ROWS: dict[int, Row] = {
    row.number: row
    for row in sorted(
        (
            *stage_deaths.ROWS,
            *broker_faults.ROWS,
            *network_faults.ROWS,
            *client_faults.ROWS,
            *bad_messages.ROWS,
            *plan_faults.ROWS,
            *clock_and_memory.ROWS,
        ),
        key=lambda row: row.number,
    )
}
