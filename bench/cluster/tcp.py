"""A bare TCP stream between two hosts of the emulated network: does a cable have its rate?"""

import subprocess
import sys

from bench.cluster.network import Host

PORT = 5001
SECONDS = 1.5

_SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2]))); print("up", flush=True)
peer, _ = server.accept(); block = bytearray(1 << 18); got, began = 0, None
while size := peer.recv_into(block):
    began = began or time.perf_counter(); got += size
print(got * 8e-6 / (time.perf_counter() - began), flush=True)
"""
_SENDER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], int(sys.argv[2]))); block = bytes(1 << 18)
end = time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end: peer.sendall(block)
"""


def stream_mbit(sender: Host, receiver: Host, seconds: float = SECONDS) -> float:
    """Payload in Mbit/s of one stream; about 0.95 of the cable's rate is what TCP can reach."""
    there = [receiver.address, str(PORT)]
    command = receiver.command([sys.executable, "-c", _SERVER, *there])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        sending = sender.command([sys.executable, "-c", _SENDER, *there, str(seconds)])
        subprocess.run(sending, check=True, timeout=60)
        return float(server.stdout.readline())
