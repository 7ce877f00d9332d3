"""The version of this release; pyproject.toml and the images carry the same (a test compares)."""

SHARDLINE_VERSION = "0.1.0"
