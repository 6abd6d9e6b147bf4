"""The Trainer of all stages, for small modules that are no models of transformers.

A module, a loss and a stream of batches are trained with the package's own log, progress bar, checkpoints and checks.
A run that was stopped (by its time, SIGTERM or Ctrl-C, or killed) resumes from its newest whole checkpoint with the
batch that comes next, bit by bit as if it had not been stopped.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from llava_uhd.files import write_text
from llava_uhd.training.trainer import StageTrainer, last_checkpoint

from .muon import MuonAdamW, has_bfloat16

# Sums and counts by name; means of a stretch of steps are sums over counts.
Measures = dict[str, tuple[float, float]]
# A batch, and what `Job.batches` begins with to yield the batch after it.
Numbered = tuple[int, Any]
SAVE_SECONDS, LOG_SECONDS = 240.0, 30.0
MAX_GRAD_NORM = 1.0
CHECKPOINTS_KEPT = 2
LOWEST = 0.02  # of the peak learning rate, at the end of the cosine


def mixed_precision(device: str) -> torch.autocast:
    """Return autocast to bfloat16 where the device multiplies in it."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device))


def cosine(progress: float, warmed_up: float) -> float:
    """Return the factor of the learning rates: a cosine from the peak down to 2 % of it, times a linear warm-up.

    Args:
        progress: progress along the cosine, from 0 to 1.
        warmed_up: progress of the warm-up; 1 and more after its end.
    """
    return min(warmed_up, 1.0) * (LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * progress)))


class EvaluationMode(nn.Module):
    """Module that stays in evaluation mode while it is trained: the up-sampler's dropout is meant for stage 0."""

    def train(self, mode: bool = True) -> "EvaluationMode":
        """Set evaluation mode, whatever is asked for."""
        return super().train(False)


class Parts(EvaluationMode, nn.ModuleDict):
    """Trained modules by name."""


class Stop:
    """True if the run should stop: its time is up, or the process was asked to end.

    Args:
        minutes: time of the run; None for no limit.
    """

    def __init__(self, minutes: float | None = None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = False

    def listen(self) -> None:
        """Stop on SIGTERM and Ctrl-C, too."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked or (self.end is not None and time.monotonic() >= self.end)


@dataclass
class Job:
    """A training: module, loss, batches, steps.

    Attributes:
        out: folder of checkpoints and log; a run in it is resumed.
        module: trained module; parameters without gradients stay as they are.
        loss: function of a batch and the number of its step, from 1, that returns the loss and its measures.
        batches: function of a number, 0 at the beginning, that yields the batches from there on; see `Numbered`.
        steps: optimizer steps.
        groups: parameter groups, from `parameter_groups`.
        rate: factor of the learning rates as a function of the number of finished steps.
        device: `cpu` or `cuda`.
        seed: seed of the trainer.
        stop: true once the run should stop early.
        log_every: steps between log lines; None for seconds, `LOG_SECONDS`.
        checkpoints: write checkpoints, every `SAVE_SECONDS` and at the end.
        callbacks: further callbacks.
    """

    out: Path
    module: nn.Module
    loss: Callable[[Any, int], tuple[torch.Tensor, Measures]]
    batches: Callable[[int], Iterator[Numbered]]
    steps: int
    groups: list[dict[str, Any]]
    rate: Callable[[int], float]
    device: str = "cpu"
    seed: int = 0
    stop: Stop = field(default_factory=Stop)
    log_every: int | None = None
    checkpoints: bool = True
    callbacks: Sequence[TrainerCallback] = ()


class _Batches(IterableDataset[dict[str, Any]]):
    """The batches of a job from a number on, each with the number of the one after it."""

    def __init__(self, job: Job, first: int):
        self.job, self.first = job, first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"following": number, "batch": batch} for number, batch in self.job.batches(self.first))


class _Means:
    """Means of the measures, samples and CPU time since the last log line."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.samples = 0

    def add(self, inputs: dict[str, Any]) -> None:
        """Count the samples of a batch."""
        self.samples += len(inputs["batch"])

    def add_measures(self, measures: Measures) -> None:
        """Count the measures of a batch."""
        for name, (total, count) in measures.items():
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + total, sums[1] + count

    def read(self) -> dict[str, float]:
        """Return the means since the last reading."""
        means = {name: total / count for name, (total, count) in self.sums.items() if count}
        read = {**means, "samples": float(self.samples), "cpu_seconds": round(time.process_time(), 1)}
        self.sums, self.samples = {}, 0
        return read


class _Pace(TrainerCallback, ExportableState):
    """Logs, saves and stops by the clock; keeps the number of the next batch in the checkpoints."""

    def __init__(self, job: Job | None = None, following: int = 0):
        self.job, self.following = job, following
        self.logged = self.saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"following": self.following}}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        job, now, step = self.job, time.monotonic(), state.global_step
        assert job is not None
        is_last, stopped = step >= job.steps, bool(job.stop)
        due = now - self.logged > LOG_SECONDS if job.log_every is None else step % job.log_every == 0
        if due or is_last or stopped:
            control.should_log, self.logged = True, now
        if job.checkpoints and (now - self.saved > SAVE_SECONDS or is_last or stopped):
            control.should_save, self.saved = True, now
        control.should_training_stop = control.should_training_stop or stopped


class MiniatureTrainer(StageTrainer):
    """Trainer of a `Job`."""

    advice = "the size of the batches"

    def __init__(self, job: Job, first: int):
        arguments = TrainingArguments(
            output_dir=str(job.out),
            max_steps=job.steps,
            per_device_train_batch_size=1,
            max_grad_norm=MAX_GRAD_NORM,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            ignore_data_skip=True,
            dataloader_pin_memory=False,
            accelerator_config={"dispatch_batches": False},
            use_cpu=job.device == "cpu",
            disable_tqdm=True,
            seed=job.seed,
        )
        optimizer = MuonAdamW(job.groups)
        self.job, self.means, self.pace = job, _Means(), _Pace(job, first)
        super().__init__(
            model=job.module,
            args=arguments,
            train_dataset=_Batches(job, first),
            data_collator=_only,
            optimizers=(optimizer, LambdaLR(optimizer, job.rate)),
            callbacks=[self.pace, *job.callbacks],
            rates={},
            group_of=str,
            order=None,
            meter=self.means,
            max_loss_rise=0.0,
            checkpoints_kept=CHECKPOINTS_KEPT,
            recipe_text="",
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, and count its measures."""
        loss, measures = self.job.loss(inputs["batch"], self.state.global_step + 1)
        self.means.add_measures(measures)
        self.pace.following = inputs["following"]
        return (loss, None) if return_outputs else loss

    def _size(self, inputs: dict[str, Any]) -> str:
        return f"{len(inputs['batch'])} samples"

    def _save_batch(self) -> str:
        return f"it was the batch before number {self.pace.following}; {self._kept()}"


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    (batch,) = batches
    return batch


def train(job: Job) -> bool:
    """Train from the beginning or from the newest checkpoint; return True if the last step is done."""
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(job.out) if job.checkpoints else None
    first = 0
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        first = state.stateful_callbacks[_Pace.__name__]["attributes"]["following"]
    trainer = MiniatureTrainer(job, first)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.global_step >= job.steps


def skipping(stream: Callable[[], Iterator[Any]]) -> Callable[[int], Iterator[Numbered]]:
    """Return `Job.batches` of a stream that can only begin at its first batch; the others are drawn again."""

    def batches(first: int) -> Iterator[Numbered]:
        for number, batch in enumerate(stream(), start=1):
            if number > first:
                yield number, batch

    return batches


def append_log(folder: Path, stage: str, log: Path) -> None:
    """Append the log of a stage's folder to one log of all stages, each line with the stage's name.

    Lines of the stage that are there already, from an earlier run of it, are replaced.
    """
    kept = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    kept = [line for line in kept if json.loads(line)["stage"] != stage]
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        kept.append(json.dumps({"stage": stage, **json.loads(line)}))
    write_text(log, "".join(f"{line}\n" for line in kept))
