"""What all command lines share: a user's mistake is one line on stderr, and exit codes that scripts can trust."""

import os
import sys
from collections.abc import Callable

from models.errors import HadanetError


def exit_status(name: str, call: Callable[[], int]) -> int:
    """Run a command: its own status; 1 with one line for a user's mistake; 130 for Ctrl-C; 141 where nobody reads on.

    The last is what a shell reports of a program that writes into a closed pipe, as in `hadanet info | head -1`.
    """
    try:
        status = call()
        sys.stdout.flush()  # here, where a closed pipe is no traceback yet
        return status
    except HadanetError as error:
        sys.stderr.write(f"{name}: {error}".replace("\n", " ") + "\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer has to go somewhere
        return 141
