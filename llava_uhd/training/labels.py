"""Labels of the loss tokens of a conversation. Pure functions of token ids.

`answer_labels` selects the answers marked by the chat template. The reference data preparations differ in detail; the
other functions reproduce them exactly, to repeat the reference training. All of them work on ids before or after the
expansion of image tokens, since image tokens are never targets.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE = -100
VICUNA_END = "</s>"
VICUNA_ANSWER = "ASSISTANT: "


def find_targets(labels: "torch.Tensor") -> "torch.Tensor":
    """Return the indices of the target tokens among the flattened labels, (...) to (T,)."""
    return labels.ne(IGNORE).flatten().nonzero().flatten()


def answer_labels(input_ids: Sequence[int], answer_mask: Sequence[int]) -> list[int]:
    """Return the labels of the tokens selected by the answer mask.

    Args:
        input_ids: token ids of one conversation.
        answer_mask: 1 for target tokens: `assistant_masks` from `apply_chat_template`.

    Raises:
        ValueError: the two differ in length.
    """
    if len(input_ids) != len(answer_mask):
        raise ValueError(f"there are {len(input_ids)} tokens, but a mask of {len(answer_mask)}")
    return [token if learned else IGNORE for token, learned in zip(input_ids, answer_mask, strict=True)]


def plain_labels(input_ids: Sequence[int], num_prompt_tokens: int) -> list[int]:
    """Return the reference labels of the `plain` format: everything after the image.

    Args:
        input_ids: token ids of an image and its caption.
        num_prompt_tokens: tokens up to the end of the image, with the begin-of-text token.
    """
    return [IGNORE] * num_prompt_tokens + list(input_ids[num_prompt_tokens:])


def vicuna_labels(
    input_ids: Sequence[int], prompt: str, count_tokens: Callable[[str], int], *, legacy: bool = False
) -> list[int]:
    """Return the reference labels of the `vicuna` format: answers, located by retokenizing each round.

    A single round begins with the begin-of-text token, whereas in the conversation it ends with the end-of-text token:
    the counts are equal. After the first round it also begins with a space that is absent in the conversation, unless
    the tokenizer is `legacy` and inserts a space after special tokens too. If the total still differs, the reference
    implementation ignores the whole sample.

    Args:
        input_ids: token ids of the conversation.
        prompt: text of the conversation.
        count_tokens: number of tokens of a text by itself, with the begin-of-text token, and its images counted as
            they are in `input_ids`.
        legacy: value of the tokenizer's `legacy` option.
    """
    labels = [IGNORE] * len(input_ids)
    position = 1
    for index, text in enumerate(filter(None, prompt.split(VICUNA_END))):
        question, marker, answer = text.partition(VICUNA_ANSWER)
        if not marker or VICUNA_ANSWER in answer:
            break
        leading_space = int(index > 0 and not legacy)
        start = position + count_tokens(question + marker) - 2 - leading_space
        position += count_tokens(text) - leading_space
        labels[start:position] = input_ids[start:position]
    return labels if position == len(input_ids) else [IGNORE] * len(input_ids)


def chatml_labels(
    input_ids: Sequence[int],
    *,
    turn_start: int,
    assistant_header: Sequence[int],
    always_learned: Collection[int],
    ignored: Collection[int] = (),
) -> list[int]:
    """Return the reference labels of the `qwen` format: assistant turns with headers, and some ids everywhere.

    Args:
        input_ids: token ids of the conversation.
        turn_start: id of `<|im_start|>`.
        assistant_header: ids of "assistant" and the newline.
        always_learned: target ids in every turn: `<|im_start|>`, `<|im_end|>` and the newline (198) in the reference.
        ignored: ids that are never targets, such as the image token's, even in an assistant turn.
    """
    header = list(assistant_header)
    labels, in_answer = [], False
    for index, token in enumerate(input_ids):
        if token == turn_start:
            in_answer = list(input_ids[index + 1 : index + 1 + len(header)]) == header
        learned = (in_answer or token in always_learned) and token not in ignored
        labels.append(token if learned else IGNORE)
    return labels
