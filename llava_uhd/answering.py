"""Former name of `generation.prompt` and `generation.batch`; importing from here warns and names the new place."""

from .deprecation import former_names

_PROMPT = "llava_uhd.generation.prompt"
__getattr__ = former_names(
    __name__,
    {
        "question_message": f"{_PROMPT}.question_message",
        "prepare": f"{_PROMPT}.prepare",
        "answer": "llava_uhd.generation.batch.answer",
    },
)
