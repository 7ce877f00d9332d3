"""A plan as one HTML page that needs nothing else: no file, no font, no script, no network.

Imported only when `shardline show --html` asks for it.
"""
