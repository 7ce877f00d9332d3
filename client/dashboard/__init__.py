"""The web dashboard: what an observer knows of a cluster, sent to browsers."""
