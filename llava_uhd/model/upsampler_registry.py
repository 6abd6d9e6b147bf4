"""Registry of up-samplers: the names that `projector.upsampler` of a config accepts.

    from llava_uhd import register_upsampler

    register_upsampler("guided", GuidedFilter)  # GuidedFilter(channels) returns a torch module

The factory is called with the encoder's channels, C, and returns a module whose forward pass is
`(features, pixels, size) -> map`: features (N, C, h, w), normalized pixels (N, 3, ., .) and size (H, W) to
(N, C, H, W). It draws or loads the module's weights; a model saved with it holds them afterwards.

A name must be registered before a model that uses it is built or loaded. An installed package can do so with an entry
point of the group `llava_uhd.upsamplers`, which is looked up by every command and engine.
"""

from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

UpsamplerFactory = Callable[[int], Any]

BUILT_IN_UPSAMPLERS = ("jbu", "bilinear", "deconvolution", "none")
ENTRY_POINTS = "llava_uhd.upsamplers"
_REGISTERED: dict[str, UpsamplerFactory] = {}


def register_upsampler(name: str, factory: UpsamplerFactory) -> None:
    """Register an up-sampler; a name that is registered already gets the new factory.

    Args:
        name: name in the config, `projector.upsampler`.
        factory: callable that takes the number of channels and returns a torch module, see above.

    Raises:
        ValueError: the name is empty or that of a built-in up-sampler, or the factory cannot be called.
    """
    if not isinstance(name, str) or not name or name in BUILT_IN_UPSAMPLERS:
        raise ValueError(f"{name!r} cannot be registered: {', '.join(BUILT_IN_UPSAMPLERS)} are built in")
    if not callable(factory):
        raise ValueError(f"the factory of up-sampler {name!r} must be callable, got {type(factory).__name__}")
    _REGISTERED[name] = factory


def upsampler_names() -> list[str]:
    """Return the names that a config accepts now."""
    installed = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    return list(dict.fromkeys([*BUILT_IN_UPSAMPLERS, *sorted(_REGISTERED), *sorted(installed)]))


def check_upsampler(name: str) -> None:
    """Check that an up-sampler is built in or registered.

    Raises:
        ValueError: it is neither, with the nearest names.
    """
    if name in BUILT_IN_UPSAMPLERS or name in _REGISTERED:
        return
    names = upsampler_names()
    if name not in names:
        near = get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"upsampler {name!r} is not registered: {hint}there are {', '.join(names)}. One of your own is registered "
            f"with register_upsampler of {__name__} before the model is built or loaded, or by an installed package's "
            f"entry point in {ENTRY_POINTS}"
        )


def upsampler_factory(name: str) -> UpsamplerFactory:
    """Return the factory of a registered up-sampler.

    Raises:
        ValueError: it is not registered.
    """
    check_upsampler(name)
    if name not in _REGISTERED:
        _REGISTERED[name] = next(iter(entry_points(group=ENTRY_POINTS, name=name))).load()
    return _REGISTERED[name]


__all__ = ["register_upsampler", "upsampler_names"]
