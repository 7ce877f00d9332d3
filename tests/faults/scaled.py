"""Every time of the product that a fault lasts against, shortened by one factor.

A table of 32 rows and 20 seeds would take a day at full length: a cut of 60 s against a keepalive
of 15 s is run as one of 8 s against 2 s. The soak (bench/soak.py) runs both at full length.
"""

FACTOR = 7.5
KEEPALIVE_S = round(15 / FACTOR)
CUT_S = 60 / FACTOR
HANG_S = 120 / FACTOR
FLAP_S = 60 / FACTOR
FLAP_EVERY_S = 2 / FACTOR
LEAST_RECONNECT_S = (0.5 / FACTOR, 1.5 / FACTOR)
MOST_RECONNECT_S = (3.0 / FACTOR, 5.0 / FACTOR)
MIN_DEADLINE_S = 2.0 / FACTOR
MAX_DEADLINE_S = 30.0 / FACTOR
MAX_REFUSAL_DELAY_S = 5.0 / FACTOR
RECOVERY_LIMIT_S = 10.0
"""After a cut has healed (PROTOCOL.md's own limit, not scaled: a loaded machine is slow)."""
