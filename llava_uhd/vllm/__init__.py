"""Plug-in for vLLM: a native model with its own multimodal processor, and vLLM's language model behind it.

    pip install 'llava-uhd[vllm]'
    vllm serve FOLDER

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`); vLLM is not imported before.
"""

ARCHITECTURE = "LlavaUhdForConditionalGeneration"
MODE = "llava_uhd"  # of tokenizer and renderer


def register() -> None:
    """Register config, processor, model, tokenizer and renderer with transformers and vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from .. import registration  # noqa: F401  the Auto classes of transformers
    from .settings import LlavaUhdSettings

    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:LlavaUhdForConditionalGeneration")
    MODELS_CONFIG_MAP[ARCHITECTURE] = LlavaUhdSettings
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, f"{__name__}.tokenizer", "LlavaUhdTokenizer")
    if MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODE, f"{__name__}.renderer", "LlavaUhdRenderer")
