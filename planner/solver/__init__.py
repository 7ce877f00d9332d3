"""Solves a problem of devices and segments: exactly where it can, within a proven bound beyond.

`planner.partition` is the entrance. `exact` searches the `states` (segments covered, devices of
each kind used) over the `spans` of segments; `grouping` tells kinds of devices; `fractional` gives
quick bounds; `bounded` puts groups of similar devices, `local_search` and `integer_program`
together for what is too large; `baselines` are there to compare with; `infeasible` says why nothing
fits. Pure.
"""
