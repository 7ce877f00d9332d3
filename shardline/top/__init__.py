"""`shardline top`: a cluster as text, live in a terminal or once.

What is shown is decided by pure functions of a view and a size; `app.py` alone knows textual.
"""
