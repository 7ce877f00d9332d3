"""The entry point: runs the command, turns our errors into one clear line and an exit code."""

import os
import sys

from dotenv import load_dotenv

from contract.errors import ExitCode, ShardlineError
from shardline.console import err


def main() -> None:
    """Run ``shardline`` and leave the process with a named exit code."""
    load_dotenv(".env", override=False)
    from shardline.app import app

    try:
        app()
    except ShardlineError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, soft_wrap=True)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        _leave(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(ExitCode.OK)


def _leave(code: int) -> None:
    sys.exit(int(code))


if __name__ == "__main__":
    main()
