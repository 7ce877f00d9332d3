"""The planner as a service: keeps a cluster's plan published, and plans anew when devices go.

`presence.py` knows who is there, `reaction.py` what has to be done, `candidates.py` what could be;
all three are pure. `replanner.py` builds, `service.py` is the loop around them.
"""
