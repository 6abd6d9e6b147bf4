"""Makes the classes known to transformers' Auto classes, and their code part of the checkpoints that are saved.

Importing this module does it; `import llava_uhd` imports this module.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

# Older releases hide this one at the top level where torchvision is missing, though it works without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .model.configuration_llava_uhd import LlavaUhdConfig
from .model.image_processing_llava_uhd import LlavaUhdImageProcessor
from .model.modeling_llava_uhd import LlavaUhdForConditionalGeneration, LlavaUhdModel
from .model.processing_llava_uhd import LlavaUhdProcessor

AutoConfig.register(LlavaUhdConfig.model_type, LlavaUhdConfig)
AutoImageProcessor.register(LlavaUhdConfig, image_processor_classes={"pil": LlavaUhdImageProcessor})
AutoProcessor.register(LlavaUhdConfig, LlavaUhdProcessor)
AutoModel.register(LlavaUhdConfig, LlavaUhdModel)
AutoModelForImageTextToText.register(LlavaUhdConfig, LlavaUhdForConditionalGeneration)

# From here on `save_pretrained` copies the code of these classes beside the weights (trust_remote_code).
LlavaUhdConfig.register_for_auto_class()
LlavaUhdImageProcessor.register_for_auto_class()
LlavaUhdProcessor.register_for_auto_class()
LlavaUhdModel.register_for_auto_class("AutoModel")
LlavaUhdForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
