"""Sizes of the built-in model, and its configuration."""

from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig

VIEW_SIZE = 112
PATCH_SIZE = 14
QUERY_GRID = 8
MAX_SLICES = 7
WIDTH = 192
VISION_WIDTH = 160
CONTEXT = 2048

TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
VISION_CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 4 * VISION_WIDTH,
    # The last layer is not used: the features are the output of the last but one.
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "image_size": VIEW_SIZE,
    "patch_size": PATCH_SIZE,
    "hidden_act": "gelu",
}
PROJECTOR = {"type": "hiwin", "levels": [1, 2], "upsampler": "jbu", "query_grid": QUERY_GRID, "num_attention_heads": 4}


def build_config() -> LlavaUhdConfig:
    """The configuration of the built-in model; the tokens' ids are those of `tokenizer.build_tokenizer`."""
    from .tokenizer import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, VOCABULARY_SIZE, byte_id

    text_config = {
        **TEXT_CONFIG,
        "vocab_size": VOCABULARY_SIZE,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    return LlavaUhdConfig(
        vision_config=dict(VISION_CONFIG),
        text_config=text_config,
        projector=dict(PROJECTOR),
        layout="stitched",
        image_token_id=IMAGE_ID,
        slice_separator_id=byte_id(","),
        row_separator_id=byte_id("\n"),
        max_slices=MAX_SLICES,
    )
