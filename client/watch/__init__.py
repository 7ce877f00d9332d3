"""Watching a cluster: what its messages say, kept as one picture that any view can draw."""
