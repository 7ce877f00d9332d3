"""One file a command: parse, call, print. The work is in the packages."""
