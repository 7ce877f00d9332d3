"""Fuzzing of everything that takes bytes from the network or from a file: `make fuzz`.

`targets.py` says what may not happen, `mutators.py` makes inputs that get past the first check,
`corpus.py` has the good ones to begin with. The tests here run a bounded number of examples;
`python -m tests.fuzz --minutes 10` goes on for as long as it is told.
"""
