"""LLaVA-UHD: ask questions about images at their own resolution and aspect ratio.

Importing the package registers its classes with transformers' Auto classes. The command line alone puts that off until
a name is used, since `llava-uhd --help` needs neither torch nor transformers.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loading import built_in, load
    from .model.configuration_llava_uhd import LlavaUhdConfig
    from .model.image_processing_llava_uhd import LlavaUhdImageProcessor
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
    from .model.processing_llava_uhd import LlavaUhdProcessor
    from .model.slicing import SlicePlan, plan_slices

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
]

# These need no registration, which is slow: it imports torch and transformers.
_PURE = {
    "SlicePlan": ".model.slicing",
    "built_in": ".loading",
    "load": ".loading",
    "plan_slices": ".model.slicing",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PURE.get(name, ".registration"), __name__), name)


if Path(sys.argv[0]).stem != "llava-uhd":
    import_module(".registration", __name__)
