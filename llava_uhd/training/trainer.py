"""Subclass of transformers' Trainer for all stages; stage 0 has its gradients in `upsampler.stage_trainer`.

Adds a learning rate per parameter group, the sample order of `data.order`, atomic checkpoints, and a stop with a dump
of the batch if the loss is not finite or keeps rising.
"""

import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from ..files import find_damage, read_json, replace_file, seal_folder, write_text
from .labels import IGNORE
from .watch import LossGuard, Progress, RunStopped

logger = logging.getLogger(__name__)

# The list of a checkpoint's files, written when all of them are; empty in checkpoints of earlier versions.
COMPLETE = "complete"
RECIPE_COPY = "recipe.yaml"
UNUSABLE_STEPS = 20  # steps without a usable sample after which a run stops
# One file or folder of each kind must be there, where no list tells: weights, optimizer, schedule, random state.
NEEDED = (
    ("*.safetensors", "*.bin", "*model_fsdp_0", "global_step*"),
    ("optimizer*", "global_step*"),
    ("scheduler.pt",),
    ("rng_state*.pth",),
    ("trainer_state.json",),
)
UNREADABLE = (
    OSError,
    SafetensorError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    pickle.UnpicklingError,
)


def checkpoints(out: Path) -> list[Path]:
    """Return the folders of all checkpoints of a run, complete or not, the newest first."""
    found = [folder for folder in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted((folder for folder in found if folder.is_dir()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_damage(checkpoint: Path, contents: bool = True) -> str | None:
    """Return the reason why a checkpoint is unusable, None if it is complete.

    Args:
        checkpoint: folder of the checkpoint.
        contents: compare the checksums of its files, which reads them.
    """
    file_list = checkpoint / COMPLETE
    if file_list.is_file() and file_list.read_bytes()[:1] == b"{":
        return find_damage(checkpoint, COMPLETE, contents)
    if not file_list.is_file():
        return "it was not written to its end"
    for patterns in NEEDED:
        files = [path for pattern in patterns for path in checkpoint.glob(pattern)]
        if not files:
            return f"its file {patterns[0]} is missing"
        for file in files:
            if file.is_file() and file.stat().st_size == 0:
                return f"its file {file.name} is empty"
    return None


def last_checkpoint(out: Path, contents: bool = True) -> Path | None:
    """Return the newest complete checkpoint; newer ones that are passed over are logged with the reason.

    Args:
        out: folder of the run.
        contents: compare the checksums of the files, which reads them.
    """
    for checkpoint in checkpoints(out):
        damage = checkpoint_damage(checkpoint, contents)
        if damage is None:
            return checkpoint
        logger.warning("passed over %s: %s", checkpoint, damage)
    return None


class _SetEpoch(TrainerCallback):
    """Set the epoch of the sample order, also when resuming within an epoch."""

    def __init__(self, order: Any):
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.order.set_epoch(state.global_step // self.order.steps)


class _LogLastStep(TrainerCallback):
    """Log the last step, whatever its number: what a run reports is then of all its steps."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class Throughput(Protocol):
    """Throughput of this device since the last reading."""

    def add(self, inputs: dict[str, torch.Tensor]) -> None: ...

    def read(self) -> dict[str, float]: ...


class StageTrainer(Trainer):
    """Trainer of one stage.

    Args:
        rates: learning rate by parameter group.
        group_of: function that maps a parameter name to its parameter group.
        order: sampler of the training samples, with `steps` of an epoch and `set_epoch`; None for a data set that is
            iterated.
        meter: throughput meter, with `add` and `read`.
        max_loss_rise: loss limit, see `MonitoringRecipe`.
        checkpoints_kept: number of complete checkpoints kept.
        recipe_text: recipe as YAML, copied into each checkpoint.
        kwargs: arguments of `Trainer`.
    """

    # Settings to lower when memory runs out.
    advice = "optimization.micro_batch or data.max_length"

    def __init__(
        self,
        *args: Any,
        rates: dict[str, float],
        group_of: Callable[[str], str],
        order: Any,
        meter: Throughput,
        max_loss_rise: float,
        checkpoints_kept: int,
        recipe_text: str,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.optimizer: Any
        self.rates, self.group_of, self.order, self.meter = rates, group_of, order, meter
        self.checkpoints_kept, self.recipe_text = checkpoints_kept, recipe_text
        self.max_loss_rise = max_loss_rise
        self.guard: LossGuard | None = None
        self.last_inputs: dict[str, Any] = {}
        self.out = Path(self.args.output_dir)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress(self.out / "log.jsonl"))
        self.add_callback(_LogLastStep())
        if order is not None:
            self.add_callback(_SetEpoch(order))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, AdamW unless another is given, with a group per learning rate and weight decay."""
        model = self.model if model is None else model
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((self.rates[self.group_of(name)], decay), []).append(parameter)
            optimizer, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            options = {name: value for name, value in options.items() if name != "lr"}
            self.optimizer = optimizer(
                [
                    {"params": parameters, "lr": learning_rate, "weight_decay": decay}
                    for (learning_rate, decay), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.last_inputs = inputs
        try:
            loss = self._backward(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            raise RunStopped(
                f"out of memory at step {self.state.global_step + 1} on a batch of {self._size(inputs)}: "
                f"lower {self.advice}; {self._kept()}"
            ) from error
        if not torch.isfinite(loss):
            raise RunStopped(f"the loss is {loss.item()} at step {self.state.global_step + 1}; " + self._save_batch())
        self.meter.add(inputs)
        return loss

    def _size(self, inputs: dict[str, Any]) -> str:
        """Return the size of a batch, for messages."""
        return str(tuple(next(iter(inputs.values())).shape))

    def _backward(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the loss of a micro-batch and add its gradients; return the loss."""
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.read())
        if self.guard is None:
            # A resumed run is held to the losses before its checkpoint, too.
            self.guard = LossGuard(self.max_loss_rise)
            for entry in self.state.log_history:
                if "loss" in entry:
                    self.guard.rises(entry["loss"])
        super().log(logs, start_time)
        # The loss is reduced over all devices, so all of them stop.
        if "loss" in logs and self.guard.rises(logs["loss"]):
            raise RunStopped(
                f"the smoothed loss rose from {self.guard.lowest:.4g} to {self.guard.smoothed:.4g} by step "
                f"{self.state.global_step}, by more than monitoring.max_loss_rise={self.max_loss_rise:g}; "
                + self._save_batch()
            )
        if self._nothing_learned(logs):
            raise RunStopped(
                f"no sample of the first {self.state.global_step} steps can be used; "
                f"{self.out / 'left-out.jsonl'} says why"
            )

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss of one held-out sample, and, as what is predicted, its sum and number of target tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs).loss.detach().float()
        targets = inputs["labels"][:, 1:].ne(IGNORE).sum()
        return loss, torch.stack([loss * targets, targets])[None], None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the base class, but give the mean loss of all target tokens, as that of training is."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, targets = output.predictions.sum(axis=0, dtype=float)
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = float(total / targets)
        return output

    def _nothing_learned(self, logs: dict[str, float]) -> bool:
        """Return whether a run ends, or has gone on for long, and no step had a usable sample: their loss is 0."""
        is_over = "train_loss" in logs  # logged once, over all steps
        if not is_over and ("loss" not in logs or self.state.global_step < UNUSABLE_STEPS):
            return False
        return not any(entry.get("loss") or entry.get("train_loss") for entry in self.state.log_history)

    def _save_batch(self) -> str:
        file = self.out / f"stopped-step-{self.state.global_step + 1}-rank-{self.args.process_index}.pt"
        with replace_file(file) as temporary:
            torch.save({name: tensor.cpu() for name, tensor in self.last_inputs.items()}, temporary)
        return f"the batch is in {file}; {self._kept()}"

    def _kept(self) -> str:
        last = last_checkpoint(self.out, contents=False)
        return "there is no checkpoint yet" if last is None else f"the last whole checkpoint is {last}"

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train as the base class, without a further step if the checkpoint is that of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _named(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            read_json(Path(resume_from_checkpoint) / "trainer_state.json")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _named(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as the base class; after all ranks, write the list of files that completes the checkpoint."""
        folder = self.out / f"checkpoint-{self.state.global_step}"
        try:
            if self.args.should_save:
                # Remove an incomplete or damaged checkpoint, so that none of its files remains.
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_text(folder / RECIPE_COPY, self.recipe_text)
                seal_folder(folder, COMPLETE)
                self._remove_old_checkpoints()
        except (OSError, SafetensorError, RuntimeError) as error:
            raise RunStopped(f"{folder} could not be written ({error}); {self._kept()}") from error

    def _remove_old_checkpoints(self) -> None:
        """Keep the newest complete checkpoints up to this step, and nothing else."""
        complete = [
            folder
            for folder in checkpoints(self.out)
            if step_of(folder) <= self.state.global_step and checkpoint_damage(folder, contents=False) is None
        ]
        for folder in checkpoints(self.out):
            if folder not in complete[: self.checkpoints_kept]:
                # Delete the file list first: an interrupted deletion leaves an incomplete checkpoint.
                (folder / COMPLETE).unlink(missing_ok=True)
                shutil.rmtree(folder)


@contextmanager
def _named(checkpoint: str | None) -> Iterator[None]:
    """Name the checkpoint in whatever error reading it raises."""
    try:
        yield
    except UNREADABLE as error:
        reason = unreadable_because(error)
        raise RunStopped(f"{checkpoint} cannot be read ({reason}): remove it to resume from the one before") from error


def unreadable_because(error: BaseException) -> str:
    """Return in a few words why a file of tensors cannot be read."""
    if isinstance(error, pickle.UnpicklingError):  # its text is a page on options of torch.load
        return "its bytes are not those of a file that torch.save wrote"
    return " ".join(str(error).split()) or type(error).__name__
