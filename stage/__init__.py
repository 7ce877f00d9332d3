"""The device: holds one shard, runs it, and accounts for every batch that passes."""
