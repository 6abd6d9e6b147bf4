"""Model for vLLM: the package's own vision path, and any language model that vLLM has.

Paged attention, continuous batching, prefix caching, chunked prefill, tensor and pipeline parallelism, quantization
and LoRA of the language model are vLLM's. Vision tower and projector run on every rank as they are in the checkpoint.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from ..model.configuration_llava_uhd import LlavaUhdConfig
from ..model.modeling_llava_uhd import LlavaUhdModel
from .processing import LlavaUhdDummyInputsBuilder, LlavaUhdMultiModalProcessor, LlavaUhdProcessingInfo


def vision_path(config: LlavaUhdConfig) -> LlavaUhdModel:
    """Return vision tower and projector of a model, without its language model, of the default dtype."""
    config = deepcopy(config)
    hidden_size = config.text_config.hidden_size
    config.text_config = LlamaConfig(
        hidden_size=hidden_size,
        num_attention_heads=1,
        num_hidden_layers=0,
        intermediate_size=1,
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlavaUhdModel(config)
    del model.language_model
    return model.eval().requires_grad_(False).to(torch.get_default_dtype())


@MULTIMODAL_REGISTRY.register_processor(
    LlavaUhdMultiModalProcessor, info=LlavaUhdProcessingInfo, dummy_inputs=LlavaUhdDummyInputsBuilder
)
class LlavaUhdForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):
    """LLaVA-UHD with vLLM's language model."""

    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision.vision_tower.",
            "model.multi_modal_projector.": "vision.multi_modal_projector.",
            "lm_head.": "language_model.lm_head.",
        }
    )

    vision: LlavaUhdModel
    language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the placeholder of an image in a prompt."""
        if modality != "image":
            raise ValueError(f"LLaVA-UHD takes images, got {modality}")
        return "<image>"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.vocab_size = config.text_config.vocab_size
        with self._mark_tower_model(vllm_config, "image"):  # type: ignore[operator]
            self.vision = vision_path(config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Return one (tokens, hidden size) tensor per image."""
        if kwargs.get("pixel_values") is None:
            return []
        return self.vision.get_image_features(**kwargs).pooler_output

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Return the hidden states of the language model."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of hidden states."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint of the package; return the names of what was loaded."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Return the prefixes of the parts, by which LoRA tells them apart."""
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="vision.multi_modal_projector",
            tower_model="vision.vision_tower",
        )
