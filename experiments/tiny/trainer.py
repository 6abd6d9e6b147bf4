"""Runs the phases of a plan, resumes where a run stopped, and stops when told to.

A checkpoint holds the network, the optimizers and the number of the next batch, and is replaced as a whole: after each
few minutes, at the end of a phase, when the time is up, and on SIGTERM or Ctrl-C. The random numbers of a batch are a
function of its number, so that a run in pieces is the run in one piece.
"""

import os
import signal
import time
from collections import defaultdict
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch

from ..tiny_v1.optimization import Log, build_optimizers, mixed_precision, optimize, set_rate
from .loader import start_workers, stream_batches
from .losses import SCORES
from .network import Network, parameters_of
from .setting import Phase, Plan

SAVE_SECONDS, LOG_SECONDS = 240.0, 30.0
WARMUP = 50


class Stop:
    """Return True if the run should stop: its time is up, or the process was asked to end."""

    def __init__(self, minutes: float | None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked or (self.end is not None and time.monotonic() >= self.end)


def phase_optimizers(network: Network, phase: Phase) -> tuple[list[torch.optim.Optimizer], list[torch.nn.Parameter]]:
    """Optimizers of what a phase trains, and its parameters."""
    vision = [network.tower, network.projector, network.readout]
    language = [network.language_model, network.model.lm_head, network.code_map]
    if phase.kind == "vision" and not phase.projector:
        learning = [network.tower, network.patch_head]
        optimizers = build_optimizers(
            learning, muon_rate=phase.tower_rate, adam_rate=phase.tower_rate, head=network.patch_head
        )
        return optimizers, parameters_of(learning)
    optimizers = []
    learning = []
    if phase.kind in ("vision", "joint"):
        # In the joint phase the whole vision half goes at the tower's rate.
        rate = phase.rate if phase.kind == "vision" else phase.tower_rate
        optimizers += build_optimizers(vision[1:], muon_rate=rate, adam_rate=rate)
        optimizers += build_optimizers([network.tower], muon_rate=phase.tower_rate, adam_rate=phase.tower_rate)
        learning += vision
    if phase.kind in ("reader", "joint"):
        optimizers += build_optimizers(
            language, muon_rate=phase.rate, adam_rate=phase.rate, head=network.model.lm_head
        )
        learning += language
    return optimizers, parameters_of(learning)


def train(
    plan: Plan,
    out: Path,
    seed: int,
    device: str,
    *,
    minutes: float | None = None,
    workers: int = 1,
    compiled: bool = False,
    only: tuple[str, ...] = (),
) -> bool:
    """Run the phases that are not finished; True if all are.

    Args:
        plan: model and phases.
        out: folder of the checkpoint and the log; a run in it is resumed.
        seed: seed of weights and pages.
        device: `cpu` or `cuda`.
        minutes: stop with a checkpoint after so long; None runs to the end.
        workers: processes that draw pages.
        compiled: compile the language model, for accelerators.
        only: names of the phases to run; all if empty. Each begins with the weights that are there.
    """
    out.mkdir(parents=True, exist_ok=True)
    stop, pool = Stop(minutes), start_workers(workers)
    network = Network(plan.setting, seed)
    state: dict[str, Any] = {"finished": []}
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True, map_location="cpu")
        network.load_state_dict(state["network"])
    network.to(device)
    if compiled:
        network.language_model.compile(dynamic=True)
    try:
        for phase in plan.phases:
            if phase.name in state["finished"] or (only and phase.name not in only):
                continue
            progress = state.get("phase") if (state.get("phase") or {}).get("name") == phase.name else None
            if not train_phase(network, phase, out, seed, device, stop, pool, progress, state["finished"]):
                return False
            state = {"finished": [*state["finished"], phase.name]}
    finally:
        if pool is not None:
            pool.terminate()
    return True


def train_phase(
    network: Network,
    phase: Phase,
    out: Path,
    seed: int,
    device: str,
    stop: Stop,
    pool: Pool | None,
    progress: dict[str, Any] | None,
    finished: list[str],
) -> bool:
    """Train one phase from its beginning or from a checkpoint's progress; True if it came to its end."""
    log = Log(out / "log.jsonl", phase.name)
    optimizers, parameters = phase_optimizers(network, phase)
    step, batch, seconds = 0, 0, 0.0
    if progress is not None:
        step, batch, seconds = progress["step"], progress["batch"], progress["seconds"]
        for optimizer, values in zip(optimizers, progress["optimizers"], strict=True):
            optimizer.load_state_dict(values)
    (begin, end), score = phase.cosine, SCORES[phase.kind]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    pages = 0
    started = logged = saved = time.monotonic()
    first_seconds = seconds

    def save(done: bool) -> None:
        content = {"network": network.state_dict(), "finished": [*finished, phase.name] if done else finished}
        if not done:
            content["phase"] = {
                "name": phase.name,
                "step": step,
                "batch": batch,
                "seconds": seconds,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
        torch.save(content, out / "checkpoint.tmp")
        os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")

    stream = stream_batches(network.setting, phase, seed, batch, pool)
    while step < phase.steps and not stop:
        number, samples = next(stream)
        set_rate(optimizers, begin + (end - begin) * step / phase.steps, (step + 1) / WARMUP)
        with mixed_precision(device):
            found = score(network, phase, samples, device)
        optimize(found.loss, optimizers, parameters)
        step, batch = step + 1, number + 1
        pages += len(samples)
        now = time.monotonic()
        seconds = first_seconds + now - started
        for name, (total, count) in {"loss": (found.loss.item(), 1.0), **found.measures}.items():
            sums[name][0] += total
            sums[name][1] += count
        if now - logged > LOG_SECONDS or step == phase.steps:
            means = {name: total / count for name, (total, count) in sums.items() if count}
            log.write(step=step, phase_seconds=round(seconds), pages=pages, cpu_seconds=time.process_time(), **means)
            sums.clear()
            pages, logged = 0, now
        if now - saved > SAVE_SECONDS:
            save(done=False)
            saved = now
    save(done=step >= phase.steps)
    return step >= phase.steps
