"""The version of this release; pyproject.toml and the images carry the same (a test compares)."""

SHARDLINE_VERSION = "0.1.0"
RELEASED_UNIX_S = 1_795_219_200
"""2026-11-21: no right clock shows less to whoever runs this release."""
