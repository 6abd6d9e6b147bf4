"""LLaVA-UHD: ask questions about images at their own resolution and aspect ratio.

Importing the package registers its classes with transformers' Auto classes (see `registration`). It imports neither
torch nor transformers: the public names below are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import install

if TYPE_CHECKING:
    from .loading import built_in, load
    from .model.configuration_llava_uhd import LlavaUhdConfig
    from .model.image_processing_llava_uhd import LlavaUhdImageProcessor
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
    from .model.processing_llava_uhd import LlavaUhdProcessor
    from .model.slicing import SlicePlan, plan_slices
    from .model.upsampler_registry import register_upsampler

__version__ = "0.1.0"

__all__ = [
    "LlavaUhdConfig",
    "LlavaUhdForConditionalGeneration",
    "LlavaUhdImageProcessor",
    "LlavaUhdModel",
    "LlavaUhdProcessor",
    "SlicePlan",
    "built_in",
    "load",
    "plan_slices",
    "register_upsampler",
]

_MODULES = {
    "LlavaUhdConfig": ".model.configuration_llava_uhd",
    "LlavaUhdForConditionalGeneration": ".model.modeling_llava_uhd",
    "LlavaUhdImageProcessor": ".model.image_processing_llava_uhd",
    "LlavaUhdModel": ".model.modeling_llava_uhd",
    "LlavaUhdProcessor": ".model.processing_llava_uhd",
    "SlicePlan": ".model.slicing",
    "built_in": ".loading",
    "load": ".loading",
    "plan_slices": ".model.slicing",
    "register_upsampler": ".model.upsampler_registry",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


install()
