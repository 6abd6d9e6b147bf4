"""Monitoring: throughput, utilization (MFU) and loss checks."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..deprecation import former_names
from ..files import append_line, write_text
from ..flops import folding_in_training, sample_flops, training_flops
from ..model.configuration_llava_uhd import LlavaUhdConfig
from .labels import IGNORE

SMOOTHING = 0.2  # smoothing factor of the monitored loss


class RunStopped(RuntimeError):
    """Run stopped early by a failed check; the message gives the reason and what is kept."""


class ThroughputMeter:
    """Throughput meter of this device since the last reading."""

    def __init__(self, config: LlavaUhdConfig, trained: list[str], devices: int, peak_tflops: float | None):
        self.config, self.trained, self.devices, self.peak_tflops = config, trained, devices, peak_tflops
        self.since, self.samples, self.tokens, self.flops = time.perf_counter(), 0, 0, 0.0

    def add(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch of the collator."""
        lengths = sequence_lengths(inputs)
        self.samples += len(lengths)
        self.tokens += sum(lengths)
        shapes = (
            [(rows, columns) for rows, columns in inputs["view_shapes"].tolist()] if "view_shapes" in inputs else []
        )
        learned = int(inputs["labels"].ne(IGNORE).sum())
        if shapes:
            self.flops += folding_in_training(self.config, self.trained)
        for index, length in enumerate(lengths):
            # All views and labels at the first sequence: only the attention asks which sequence a token is of.
            first = index == 0
            forward = sample_flops(self.config, shapes if first else [], length, learned if first else 0)
            self.flops += training_flops(forward, self.trained)

    def read(self) -> dict[str, float]:
        """Return throughput since the last reading, extrapolated from this device to all."""
        now = time.perf_counter()
        rates: dict[str, float] = {}
        if self.samples:
            seconds = now - self.since
            rates["samples_per_second"] = self.devices * self.samples / seconds
            rates["tokens_per_second"] = self.devices * self.tokens / seconds
            rates["tflops_per_device"] = self.flops / seconds / 1e12
            if self.peak_tflops:
                rates["utilisation"] = rates["tflops_per_device"] / self.peak_tflops
        self.since, self.samples, self.tokens, self.flops = now, 0, 0, 0.0
        return rates


def sequence_lengths(inputs: dict[str, torch.Tensor]) -> list[int]:
    """Return the number of tokens of each sample of a batch, without padding."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum(dim=1).tolist()
    positions = inputs["position_ids"].flatten()
    starts = [*positions.eq(0).nonzero().flatten().tolist(), len(positions)]
    return [end - start for start, end in zip(starts, starts[1:], strict=False)]


class LossGuard:
    """Detect a loss that rises and does not recover.

    Attributes:
        smoothed: smoothed loss; None before a step with usable samples.
        lowest: its minimum.
    """

    def __init__(self, max_rise: float):
        self.max_rise = max_rise
        self.smoothed: float | None = None
        self.lowest = float("inf")

    def rises(self, loss: float) -> bool:
        """Return whether the smoothed loss, including this value, exceeds its minimum by more than the limit.

        A loss of 0 is that of steps without usable samples, and says nothing.
        """
        if loss == 0:
            return False
        self.smoothed = loss if self.smoothed is None else self.smoothed + SMOOTHING * (loss - self.smoothed)
        self.lowest = min(self.lowest, self.smoothed)
        return self.max_rise > 0 and self.smoothed > self.max_rise * self.lowest


class Progress(TrainerCallback):
    """Progress bar on stderr, and every log as a JSON line in the run's folder."""

    def __init__(self, log: Path):
        self.log = log
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            forget_later_steps(self.log, state.global_step)
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        append_line(self.log, json.dumps({"step": state.global_step, **logs}))
        if self.bar is not None:
            shown = ("loss", "eval_loss", "samples_per_second", "tokens_per_second", "utilisation")
            self.bar.set_postfix({name: f"{logs[name]:.4g}" for name in shown if name in logs})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def forget_later_steps(log: Path, step: int) -> None:
    """Remove log lines of steps that are rerun, and a truncated last line."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            step_of_line = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith("\n") and isinstance(step_of_line, int) and step_of_line <= step:
            kept.append(line)
    write_text(log, "".join(kept))


__getattr__ = former_names(__name__, {"Meter": "ThroughputMeter"})  # former name
