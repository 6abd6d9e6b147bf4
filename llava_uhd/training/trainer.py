"""transformers' Trainer with what these stages need beyond it.

A learning rate for each part; the order of samples from `data.order`; checkpoints that are marked when they are whole;
a stop, with the batch saved, when the loss is not a number or rises for good.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .data.order import EpochOrder
from .watch import LossGuard, Meter, Progress, RunStopped

COMPLETE = "complete"


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [mark.parent for mark in out.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


class _SetEpoch(TrainerCallback):
    """Tells the order its epoch, also when a run continues in the middle of one."""

    def __init__(self, order: EpochOrder):
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.order.set_epoch(state.global_step // self.order.steps)


class StageTrainer(Trainer):
    """Trains one stage.

    Args:
        rates: learning rate by part.
        part_of: part of a parameter, by its name.
        order: of the training samples.
        meter: of the speed.
        max_loss_rise: see `WatchRecipe`.
        kwargs: of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        rates: dict[str, float],
        part_of: Callable[[str], str],
        order: EpochOrder,
        meter: Meter,
        max_loss_rise: float,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.optimizer: Any
        self.rates, self.part_of, self.order, self.meter = rates, part_of, order, meter
        self.guard = LossGuard(max_loss_rise)
        self.last_inputs: dict[str, Any] = {}
        self.out = Path(self.args.output_dir)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress(self.out / "log.jsonl"))
        self.add_callback(_SetEpoch(order))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a group for each rate, with and without weight decay."""
        model = self.model if model is None else model
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((self.rates[self.part_of(name)], decay), []).append(parameter)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            options.pop("lr", None)
            self.optimizer = optimizer(
                [
                    {"params": parameters, "lr": rate, "weight_decay": decay}
                    for (rate, decay), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.last_inputs = inputs
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            shape = tuple(inputs["input_ids"].shape)
            raise RunStopped(
                f"out of memory at step {self.state.global_step + 1} on a batch of {shape}: lower "
                "optimization.micro_batch or data.max_length; " + self._kept()
            ) from error
        if not torch.isfinite(loss):
            raise RunStopped(f"the loss is {loss.item()} at step {self.state.global_step + 1}; " + self._save_batch())
        self.meter.add(inputs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.read())
        super().log(logs, start_time)
        # All devices are told the same loss here, so all of them stop.
        if "loss" in logs and self.guard.rises(logs["loss"]):
            raise RunStopped(
                f"the smoothed loss rose from {self.guard.lowest:.4g} to {self.guard.smoothed:.4g} by step "
                f"{self.state.global_step}; " + self._save_batch()
            )

    def _save_batch(self) -> str:
        file = self.out / f"stopped-step-{self.state.global_step + 1}-rank-{self.args.process_index}.pt"
        torch.save({name: tensor.cpu() for name, tensor in self.last_inputs.items()}, file)
        return f"the batch is in {file}; {self._kept()}"

    def _kept(self) -> str:
        last = last_checkpoint(self.out)
        return "there is no checkpoint yet" if last is None else f"the last whole checkpoint is {last}"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise RunStopped(
                f"{resume_from_checkpoint} cannot be read ({error}): remove it to go on from the one before"
            ) from error

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the base class; then, when all ranks are done, a mark that it is whole."""
        folder = self.out / f"checkpoint-{self.state.global_step}"
        # One that was cut short before is written again, and must not be taken for whole meanwhile.
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / COMPLETE).touch()
        except (OSError, SafetensorError, RuntimeError) as error:
            raise RunStopped(f"{folder} could not be written ({error}); {self._kept()}") from error
