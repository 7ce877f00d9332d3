"""The harness' own processes: what one row does to its thread is not left to the next."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.processes import ROOT
from tests.faults.rows import ROWS

FIRST_CHILD_IN_A_NAMESPACE = """
import sys
from pathlib import Path
from bench.cluster.network import CLIENT, inside, network
from tests.faults.processes import Child

with network({CLIENT: 1000.0}) as hosts, inside(hosts[CLIENT]):
    child = Child(["readlink", "/proc/self/ns/net"], Path(sys.argv[1]))
    child.start()
    child.process.wait()
"""


@pytest.mark.xdist_group("namespaces")
@pytest.mark.skipif(bool(ROWS[8].lacks()), reason=ROWS[8].lacks())
def test_a_child_begins_in_the_network_of_the_harness_whatever_row_was_first(
    tmp_path: Path,
) -> None:
    log = tmp_path / "child.log"
    command = [sys.executable, "-c", FIRST_CHILD_IN_A_NAMESPACE, str(log)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert log.read_text().strip() == str(Path("/proc/self/ns/net").readlink())
