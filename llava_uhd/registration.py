"""Register the classes with transformers' Auto classes, as soon as those exist.

`import llava_uhd` calls `install()`. Importing transformers' model code takes seconds, so nothing is imported for the
registration alone: an Auto class that is loaded already gets its entry at once, any other right after its module has
been imported, by an import hook. The hook waits until the outermost import of transformers or of `llava_uhd.model`
has ended, since a module in the middle of its import cannot be imported from.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

WATCHED_PACKAGES = ("transformers.", "llava_uhd.model.")


def _register_config() -> None:
    from transformers import AutoConfig

    from .model.configuration_llava_uhd import LlavaUhdConfig

    AutoConfig.register(LlavaUhdConfig.model_type, LlavaUhdConfig, exist_ok=True)
    LlavaUhdConfig.register_for_auto_class()  # type: ignore[no-untyped-call]  # transformers' has no types


def _register_image_processor() -> None:
    # Older releases hide this one at the top level where torchvision is missing, though it works without.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .model.configuration_llava_uhd import LlavaUhdConfig
    from .model.image_processing_llava_uhd import LlavaUhdImageProcessor

    AutoImageProcessor.register(LlavaUhdConfig, image_processor_classes={"pil": LlavaUhdImageProcessor}, exist_ok=True)
    LlavaUhdImageProcessor.register_for_auto_class()  # type: ignore[no-untyped-call]  # likewise


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .model.configuration_llava_uhd import LlavaUhdConfig
    from .model.processing_llava_uhd import LlavaUhdProcessor

    AutoProcessor.register(LlavaUhdConfig, LlavaUhdProcessor, exist_ok=True)
    LlavaUhdProcessor.register_for_auto_class()


def _register_models() -> None:
    import transformers
    from transformers import AutoModel, AutoModelForImageTextToText

    from .model.configuration_llava_uhd import LlavaUhdConfig
    from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel

    AutoModel.register(LlavaUhdConfig, LlavaUhdModel, exist_ok=True)
    AutoModelForImageTextToText.register(LlavaUhdConfig, LlavaUhdForConditionalGeneration, exist_ok=True)
    if (any_to_any := getattr(transformers, "AutoModelForMultimodalLM", None)) is not None:  # of newer releases
        any_to_any.register(LlavaUhdConfig, LlavaUhdForConditionalGeneration, exist_ok=True)
    LlavaUhdModel.register_for_auto_class("AutoModel")
    LlavaUhdForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")


# What has to be imported for a registration to be due. `register_for_auto_class` makes `save_pretrained` copy the code
# of a class beside the weights (trust_remote_code), so a class of this package that is imported is a reason as well.
_DUE_AFTER: dict[Callable[[], None], tuple[str, ...]] = {
    _register_config: ("transformers.models.auto.configuration_auto",),
    _register_image_processor: (
        "transformers.models.auto.image_processing_auto",
        "llava_uhd.model.image_processing_llava_uhd",
    ),
    _register_processor: ("transformers.models.auto.processing_auto", "llava_uhd.model.processing_llava_uhd"),
    _register_models: ("transformers.models.auto.modeling_auto",),
}


class RegistrationHook:
    """Import hook that runs the registrations that are due after each outermost import of a watched package."""

    def __init__(self) -> None:
        self.pending = dict(_DUE_AFTER)
        self._state = threading.local()
        self._lock = threading.RLock()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders have for a watched module, its execution followed by a check."""
        if not name.startswith(WATCHED_PACKAGES):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    self._hook_loader(spec.loader)
                return spec
        return None

    def register_due(self) -> None:
        """Run every registration whose modules are imported; remove the hook once all have run."""
        with self._lock:
            for register, modules in list(self.pending.items()):
                if register in self.pending and any(module in sys.modules for module in modules):
                    del self.pending[register]
                    register()
            if not self.pending and self in sys.meta_path:
                sys.meta_path.remove(self)

    def _hook_loader(self, loader: object) -> None:
        execute = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            depth = getattr(self._state, "depth", 0)
            self._state.depth = depth + 1
            try:
                execute(module)
            finally:
                self._state.depth = depth
            if depth == 0:
                self.register_due()

        loader.exec_module = exec_module  # type: ignore[attr-defined]


_HOOK = RegistrationHook()


def install() -> None:
    """Register with the Auto classes that are imported already, and hook the import of the others."""
    if _HOOK.pending and _HOOK not in sys.meta_path:
        sys.meta_path.insert(0, _HOOK)
        _HOOK.register_due()
