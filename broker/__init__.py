"""Messages in motion: the one place that knows paho and Mosquitto.

Takes and returns bytes; knows no tensor. `transport.py` is the seam, `connection.py` fills it with
paho, `memory.py` with an in-process fake; `embedded.py` runs Mosquitto as a child process.
"""
