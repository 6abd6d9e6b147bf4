"""Errors of the package, and their one-line reports on the command line.

Two kinds of failure must not look alike: what the user can change (a wrong path, an option out of range, a missing
extra) and a bug. The first is an error of this module, or a `ValueError` that is raised by a statement of this package
or of a library that reads the user's files: `llava_uhd.model` travels inside checkpoints, imports nothing of the
package, and so raises plain `ValueError`. A `ValueError` from anywhere else, and any other exception, is reported as
unexpected.
"""

import dis
from collections.abc import Iterator
from types import TracebackType

# Libraries whose own `raise ValueError` tells what is wrong with a folder, a file or an option.
READERS = ("llava_uhd", "transformers", "huggingface_hub", "accelerate", "peft", "json", "yaml", "PIL", "pypdfium2")
# Modules that are not called like the distribution they come with.
DISTRIBUTIONS = {"yaml": "pyyaml", "google": "protobuf", "prometheus_client": "prometheus-client"}


class LlavaUhdError(Exception):
    """Base class of the package's errors: the message says what to change."""


class InputError(LlavaUhdError, ValueError):
    """A value, file or option that cannot be used as it is."""


class MissingExtraError(LlavaUhdError, ImportError):
    """A package that an optional extra installs is missing."""


def first_line(error: BaseException) -> str:
    """Return the message of an exception in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_user_error(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, tells the user what to change."""
    return any(
        isinstance(link, LlavaUhdError | OSError | ImportError | MemoryError)
        or type(link).__name__ == "OutOfMemoryError"
        or (isinstance(link, ValueError) and _raised_by_a_reader(link))
        for link in _causes(error)
    )


def report(error: BaseException) -> str:
    """Return the line that the command line prints for an error."""
    if isinstance(error, ModuleNotFoundError) and (extra := missing_extra(error)) is not None:
        return f"error: {extra}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"error: {error.filename}: {error.strerror}"
    if is_user_error(error):
        return f"error: {first_line(error)}"
    named = type(error).__name__
    said = first_line(error)
    return (
        f"unexpected error: {named if said == named else f'{named}: {said}'} (in {_place(error)}): this is not a "
        "mistake of yours that the program knows; --debug shows the traceback, for a report"
    )


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error that names the extra with a missing module, or None if no extra has it."""
    module = (error.name or "").partition(".")[0]
    distribution = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    extras = [extra for extra, names in optional_dependencies().items() if distribution in names]
    if not extras:
        return None
    extra = min(extras, key=lambda name: (name == "dev", len(optional_dependencies()[name])))
    return MissingExtraError(
        f"{distribution} is not installed; it comes with an extra: pip install 'llava-uhd[{extra}]', "
        f"or in a clone: pip install -c constraints.txt -e '.[{extra}]'"
    )


def optional_dependencies() -> dict[str, set[str]]:
    """Return the distributions of every extra of the installed package."""
    from importlib import metadata  # slow to import

    try:
        requirements = metadata.requires("llava-uhd") or []
    except metadata.PackageNotFoundError:  # run from a folder that is not installed
        return {}
    extras: dict[str, set[str]] = {}
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        if "extra ==" in marker:
            extra = marker.partition("extra ==")[2].strip().strip("'\"")
            distribution = name.strip()
            for separator in "[<>=!~ (":
                distribution = distribution.partition(separator)[0]
            extras.setdefault(extra, set()).add(distribution.lower())
    return extras


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _innermost(error: BaseException) -> TracebackType | None:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _raised_by_a_reader(error: BaseException) -> bool:
    """Return True if a `raise` statement of one of `READERS` raised it, rather than an expression that failed."""
    traceback = _innermost(error)
    if traceback is None:
        return False
    frame = traceback.tb_frame
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    is_raise = frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and package in READERS


def _place(error: BaseException) -> str:
    traceback = _innermost(error)
    if traceback is None:
        return "an unknown place"
    return f"{traceback.tb_frame.f_globals.get('__name__', '?')}, line {traceback.tb_lineno}"
