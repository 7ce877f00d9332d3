"""One file per engine; each is imported only when it is chosen."""
