"""All rows, in the order of PROTOCOL.md's table."""

from tests.faults import (
    access_faults,
    bad_messages,
    broker_faults,
    client_deaths,
    client_faults,
    clock_and_memory,
    network_faults,
    plan_faults,
    poison,
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
            *client_deaths.ROWS,
            *client_faults.ROWS,
            *bad_messages.ROWS,
            *plan_faults.ROWS,
            *poison.ROWS,
            *access_faults.ROWS,
            *clock_and_memory.ROWS,
        ),
        key=lambda row: row.number,
    )
}
