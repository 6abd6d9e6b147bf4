"""Generation by transformers' `generate`: batches of questions, beam search, and streamers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..model.modeling_llava_uhd import CACHE_NAME
from .decoding import Decoder
from .prompt import room_for_answer
from .token_probabilities import TokenProbabilities

if TYPE_CHECKING:
    from transformers import BatchFeature
    from transformers.generation.streamers import BaseStreamer

    from ..model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
    from ..model.processing_llava_uhd import LlavaUhdProcessor


@torch.inference_mode()
def generate_batch(
    decoder: Decoder,
    text: Mapping[str, torch.Tensor],
    images: Mapping[str, torch.Tensor] | None,
    image_of_question: Sequence[int],
    num_shared: int,
    *,
    num_beams: int,
    max_new_tokens: int,
) -> tuple[torch.Tensor, list[list[float]]]:
    """Return the (questions, new tokens) token ids of greedy or beam-search answers, and their token probabilities.

    Each image is encoded once. Where its questions begin alike, the KV cache of that prefix is computed once for all
    of them and their beams.

    Args:
        decoder: decoder of the model.
        text: `input_ids` and `attention_mask` (questions, length), padded on the left, the first `num_shared` columns
            and the others separately.
        images: outputs of the image processor, each image once; None without images.
        image_of_question: index into `images` for every question with an image.
        num_shared: number of columns of the shared prefix; 0 reads each prompt whole.
        num_beams: number of beams; 1 is greedy. With beams no probabilities are returned.
        max_new_tokens: maximum number of new tokens; reduced to fit the context.

    Raises:
        ValueError: a prompt leaves no room for an answer.
    """
    length = text["input_ids"].shape[1]
    room = room_for_answer(length, decoder.context)
    device = decoder.model.device
    text = {name: tensor.to(device) for name, tensor in text.items()}
    features = [] if images is None else decoder.encode(images)
    inputs: dict[str, Any] = {}
    if num_shared:
        first = [image_of_question.index(image) for image in range(len(features))]
        ids, mask = (text[name][first, :num_shared] for name in ("input_ids", "attention_mask"))
        _, cache = decoder.read(ids, torch.cat(features), attention_mask=mask)
        cache.batch_select_indices(torch.tensor(image_of_question, device=device).repeat_interleave(num_beams))
        inputs[CACHE_NAME] = cache
    elif features:
        inputs["image_features"] = torch.cat([features[image] for image in image_of_question])
    recorder = TokenProbabilities() if num_beams == 1 else None
    generated = decoder.model.generate(
        **text,
        **inputs,
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=min(max_new_tokens, room),
        logits_processor=[] if recorder is None else [recorder],
    )
    new_tokens = generated[:, length:]
    return new_tokens, [] if recorder is None else recorder.finish(new_tokens, decoder.end_ids)


def answer(
    model: "LlavaUhdForConditionalGeneration",
    processor: "LlavaUhdProcessor",
    inputs: "BatchFeature",
    max_new_tokens: int,
    streamer: "BaseStreamer | None" = None,
    **generate_kwargs: Any,
) -> str:
    """Return the answer to prepared inputs, without special tokens.

    Args:
        model: loaded model.
        processor: processor of the model.
        inputs: inputs of one conversation, see `prompt.prepare`.
        max_new_tokens: maximum number of new tokens.
        streamer: streamer of transformers that receives the tokens.
        generate_kwargs: options of `generate`.
    """
    generated = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **generate_kwargs)
    new_tokens = generated[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new_tokens, skip_special_tokens=True).strip()
