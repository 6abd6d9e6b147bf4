"""Parameters of a request that this server does not implement: which may be sent, and with which values.

A parameter is taken if its value asks for nothing: the default of OpenAI's API, or the neutral value of an extension
of vLLM, SGLang, llama.cpp or transformers. Any other value would change the answer and is refused.
"""

from typing import Any

# Sent by clients, of no account for the answer.
IGNORED = frozenset(
    {
        "cache_prompt",
        "cache_salt",
        "include_reasoning",
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "rid",
        "safety_identifier",
        "separate_reasoning",
        "service_tier",
        "store",
        "stream_reasoning",
        "use_cache",
        "user",
    }
)
# Values that ask for nothing, where they are not only those that are empty, false or 0.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),  # the chat template writes them
    "best_of": (1,),
    "chat_template_content_format": ("auto", "openai"),
    "detokenize": (True,),
    "early_stopping": (False, True),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "function_call": ("none", "auto"),
    "length_penalty": (1,),
    "max_tool_calls": (0,),
    "mirostat": (0,),
    "modalities": (["text"], []),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "top_k": (-1, 0),
    "truncate_prompt_tokens": (-1,),
    "truncation": ("disabled",),
    "typical_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),  # without options it asks for a search, too
}


# In a message: fields whose content the model would not be shown.
MESSAGE_FIELDS = ("tool_calls", "function_call", "audio", "refusal")
# In the `generation_config` of `transformers chat`, which holds every field of its class: those that change a greedy
# answer, and those that change a drawn one.
GREEDY_FIELDS = (
    "bad_words_ids",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
)
SAMPLING_FIELDS = ("epsilon_cutoff", "eta_cutoff", "min_p", "top_k", "typical_p")


def is_neutral(name: str, value: Any) -> bool:
    """Return whether a parameter that is not implemented asks for nothing.

    Args:
        name: name of the parameter.
        value: value in the request.
    """
    if value is None or name in IGNORED:
        return True
    return value in NEUTRAL[name] if name in NEUTRAL else not value


def check_generation_config(values: dict[str, Any]) -> None:
    """Check that a generation config asks for nothing but what this server implements.

    Raises:
        ValueError: naming the field that would change the answer.
    """
    fields = GREEDY_FIELDS + (SAMPLING_FIELDS if values.get("do_sample") else ())
    for name in fields:
        if not is_neutral(name, values.get(name)):
            raise ValueError(f"{name} of generation_config is not supported by this server")
