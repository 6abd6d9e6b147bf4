"""Former name of a part of `generation.request`; calling it warns and names the new place."""

import warnings

from ..generation.request import UNFINISHED, split_visible


def visible_text(text: str, stop: tuple[str, ...], is_final: bool) -> tuple[str, bool]:
    """Return the part of an answer that can be shown, and whether a stop string ended it.

    Args:
        text: whole text of the answer so far.
        stop: stop strings.
        is_final: whether no further text follows.
    """
    warnings.warn(
        f"{__name__}.visible_text is now llava_uhd.generation.request.split_visible, which also returns the rest",
        DeprecationWarning,
        stacklevel=2,
    )
    visible, _, is_stopped = split_visible(text if is_final else text.rstrip(UNFINISHED), stop, is_final)
    return visible.strip(), is_stopped
