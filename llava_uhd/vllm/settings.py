"""Settings that the model needs of vLLM, applied before the tokenizer is loaded."""

from vllm.config import ModelConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from . import MODE


class LlavaUhdSettings(VerifyAndUpdateConfig):
    """Choose the tokenizer and the renderer of the plug-in, unless the command line names others."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Set `tokenizer_mode`, which names the renderer too."""
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = MODE
        elif model_config.tokenizer_mode != MODE:
            raise ValueError(
                f"LLaVA-UHD needs --tokenizer-mode {MODE} or auto, got {model_config.tokenizer_mode}: another one "
                "tokenizes prompts with images in another way than the model was trained with"
            )
