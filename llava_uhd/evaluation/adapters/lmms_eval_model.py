"""This model in lmms-eval's sense; loaded by lmms-eval alone, in its own process, through `lmms_eval_plugin`.

lmms-eval brings prompts, images, decoding options and metrics, so its numbers follow its protocols, not the paper's.
"""

from itertools import islice
from typing import Any

from lmms_eval.api.model import lmms

from ..generation import GenerationOptions
from ..predictions import Rank
from .answering import answer_questions, load_generator


def _cut(text: str, stops: list[str]) -> str:
    """The text before the first stop string."""
    ends = [index for stop in stops if stop and (index := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class LlavaUhdForLmmsEval(lmms):
    """`--model llava_uhd --model_args pretrained=tiny,max_slices=7,max_side=1024`.

    Args:
        pretrained: tiny, a folder or a hub id.
        device: such as cuda:0; None takes the first accelerator, or else the CPU.
        max_slices: most slices per image; None as trained.
        max_side: long side to which images are scaled first; None leaves them.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "tiny",
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
        self.batch_size = int(batch_size)
        self.max_slices, self.max_side = max_slices, max_side
        self.generator = load_generator(pretrained, device, dtype, self._options({}))

    def _options(self, given: dict[str, Any]) -> GenerationOptions:
        if given.get("do_sample") or given.get("temperature"):
            raise ValueError("this adapter decodes without sampling; the task asks for it")
        return GenerationOptions(
            max_side=self.max_side,
            max_slices=self.max_slices,
            num_beams=given.get("num_beams") or 1,
            max_new_tokens=given.get("max_new_tokens", 128),
            batch_size=self.batch_size,
        )

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer each request about the first of its images; those of like options share batches."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in groups.values():
            given = requests[indices[0]].args[1]
            self.generator.options = self._options(given)
            stops = given.get("until", [])
            remaining = iter(indices)
            while chosen := list(islice(remaining, self.batch_size)):
                questions = []
                for index in chosen:
                    text, _, doc_to_visual, doc_id, task, split = requests[index].args
                    visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or [None]
                    questions.append((text.replace("<image>", "").strip(), visuals[0]))
                texts = answer_questions(self.generator, questions)
                for index, text in zip(chosen, texts, strict=True):
                    answers[index] = _cut(text, [stops] if isinstance(stops, str) else stops).strip()
                    self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("lmms-eval's tasks for this model generate; none needs likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("this adapter answers single turns")
