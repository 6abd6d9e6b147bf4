"""Model class for lmms-eval, which alone loads it, in its own process, through `lmms_eval_plugin`.

lmms-eval brings prompts, images, decoding options and metrics, so its numbers follow its protocols, not the paper's.
A request's images are all used: at the `<image>` placeholders of its text if there is one for each, else before it.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from PIL import Image

from ...distributed import Rank
from ...loading import DEFAULT_MODEL
from ..generation import GenerationOptions
from .answering import Question, answer_questions, load_generator

_PLACEHOLDER = "<image>"


def _cut(text: str, stops: list[str]) -> str:
    """Return the text before the first stop string."""
    ends = [index for stop in stops if stop and (index := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _question(text: str, visuals: list[Any]) -> Question:
    """Return texts and images of a request in order.

    Raises:
        ValueError: a visual is no image.
    """
    images: list[Image.Image | Path] = []
    for visual in visuals:
        if isinstance(visual, str):
            visual = Path(visual)
        if not isinstance(visual, Image.Image | Path):
            raise ValueError(f"this model takes images; the task gives a {type(visual).__name__}")
        images.append(visual)
    texts = text.split(_PLACEHOLDER)
    if len(images) > 1 and len(texts) == len(images) + 1:
        parts = [part for pair in zip(texts, [*images, ""], strict=True) for part in pair]
    else:
        parts = [*images, text.replace(_PLACEHOLDER, "").strip()]
    return [part for part in parts if not isinstance(part, str) or part.strip()]


class LlavaUhdForLmmsEval(lmms):
    """`--model llava_uhd --model_args pretrained=tiny,max_slices=7,max_side=1024`.

    Args:
        pretrained: a built-in model, a folder or a hub id.
        device: such as cuda:0; None takes the first accelerator, or else the CPU; with several ranks each its own.
        batch_size: requests of at most one image answered at a time.
        max_slices: maximum number of slices per image; None as trained.
        max_side: long side to which images are scaled first, in pixels; None leaves them.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = DEFAULT_MODEL,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_slices: int | None = None,
        max_side: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(f"unknown model arguments: {', '.join(unknown)}")
        rank = Rank.from_environment()
        self._rank, self._world_size = rank.index, rank.count
        if rank.count > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()
            device = str(self.accelerator.device)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
        self.batch_size = int(batch_size)
        self.max_slices, self.max_side = max_slices, max_side
        self.generator = load_generator(pretrained, device, dtype, self._options({}))

    @property
    def device(self) -> torch.device:
        """Return the device of this rank, on which lmms-eval gathers requests and results."""
        return self.generator.model.device

    def _options(self, gen_kwargs: dict[str, Any]) -> GenerationOptions:
        if gen_kwargs.get("do_sample", bool(gen_kwargs.get("temperature"))):
            raise ValueError(f"this adapter decodes without sampling; the task asks for it ({gen_kwargs})")
        return GenerationOptions(
            max_side=self.max_side,
            max_slices=self.max_slices,
            num_beams=gen_kwargs.get("num_beams") or 1,
            max_new_tokens=gen_kwargs.get("max_new_tokens") or 128,
            batch_size=self.batch_size,
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer each request about all of its images; requests with equal options are batched."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in groups.values():
            gen_kwargs = requests[indices[0]].args[1]
            self.generator.options = self._options(gen_kwargs)
            stops = gen_kwargs.get("until") or []
            remaining = iter(indices)
            while chosen := list(islice(remaining, self.batch_size)):
                questions = []
                for index in chosen:
                    text, _, doc_to_visual, doc_id, task, split = requests[index].args
                    visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
                    questions.append(_question(text, visuals))
                texts = answer_questions(self.generator, questions)
                for index, text in zip(chosen, texts, strict=True):
                    answers[index] = _cut(text, [stops] if isinstance(stops, str) else stops).strip()
                    self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("lmms-eval's tasks for this model generate; none needs likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("this adapter answers single turns")
