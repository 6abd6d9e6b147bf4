"""Status lines and notes of the command line on stderr; none with --quiet."""

import os
import sys
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "LLAVA_UHD_QUIET"
# Switches of the libraries underneath: download bars, weight-loading bars, warnings, tqdm.
SILENCERS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}


def is_quiet() -> bool:
    """Return whether stderr is for errors alone: --quiet, or LLAVA_UHD_QUIET=1 in the environment."""
    return os.environ.get(QUIET, "") not in ("", "0")


def be_quiet() -> None:
    """Keep stderr for errors, in this process and in those that it starts."""
    os.environ[QUIET] = "1"
    os.environ.update(SILENCERS)
    warnings.simplefilter("ignore")


def stderr_console() -> "Console":
    """Return a rich console on stderr that prints nothing with --quiet."""
    from rich.console import Console

    return Console(stderr=True, quiet=is_quiet())


def status(text: str) -> AbstractContextManager:
    """Show a spinner on stderr during a long operation."""
    return stderr_console().status(text)


def note(text: str) -> None:
    """Print a line on stderr, unless quiet."""
    if not is_quiet():
        print(text, file=sys.stderr)


def use_utf8() -> None:
    """Read and write UTF-8 where a stream is a file or a pipe, whatever the system's code page is."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            elif (stream.encoding or "").lower().replace("-", "") != "utf8":
                stream.reconfigure(encoding="utf-8", errors="replace")
