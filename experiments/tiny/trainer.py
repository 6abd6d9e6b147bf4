"""Runs the phases of a plan, resumes where a run stopped, and stops when told to.

`checkpoint.pt` holds the network after the finished phases; the phase that is running has a folder with checkpoints of
its own. The random numbers of a batch are a function of its number, so that a run in pieces is the run in one piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_uhd.files import replace_file

from ..common.attention import write_out_attention
from ..common.muon import has_bfloat16, parameter_groups
from ..common.trainer import Job, Measures, Stop, append_log, cosine, mixed_precision
from ..common.trainer import train as train_job
from .loader import start_workers, stream_batches
from .losses import SCORES
from .network import Network
from .samples import Sample
from .setting import Phase, Plan

CHECKPOINT = "checkpoint.pt"
# Beginnings of the names of what is trained, by half of the network, and the halves that a kind of phase trains.
VISION = ("model.model.vision_tower.", "model.model.multi_modal_projector.", "readout.", "patch_heads.")
LANGUAGE = ("model.model.language_model.", "model.lm_head.", "code_map.", "slice_head.")
HALVES = {
    "tower": VISION,
    "vision": VISION,
    "reader": LANGUAGE,
    "frozen": LANGUAGE,
    "joint": (*VISION, *LANGUAGE),
}
WARMUP = 50


@dataclass(frozen=True)
class Options:
    """Options of a run of a plan.

    Attributes:
        seed: seed of weights and pages.
        device: `cpu` or `cuda`.
        stop: true once the run should stop with a checkpoint.
        workers: processes that draw pages; 0 draws them in this one.
        compiled: compile the language model, for accelerators.
        only: names of the phases to run; all if empty. Each begins with the weights that are there.
        begin: checkpoints that a run without one of its own begins with; see `begin_with`.
    """

    seed: int = 0
    device: str = "cpu"
    stop: Stop = field(default_factory=Stop)
    workers: int = 1
    compiled: bool = False
    only: tuple[str, ...] = ()
    begin: tuple[Path, ...] = ()


def phase_groups(network: Network, phase: Phase) -> list[dict[str, Any]]:
    """Return the parameter groups of what a phase trains; everything else gets no gradients."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in network.fixed)
    vision = [network.projector, network.readout]
    language = [network.language_model, network.model.lm_head, network.code_map, network.slice_head]
    patches = network.tower.embeddings.patch_embedding
    groups = []
    if phase.kind == "tower":
        rate, cells = phase.tower_rate, network.patch_heads["cells"]
        of_code = [network.patch_heads["slots"], network.readout] if phase.named == "slots" else []
        groups += parameter_groups([network.tower, cells, *of_code], rate, rate, cells, patches)
    elif phase.kind in ("vision", "joint"):
        # In the joint phase the whole vision half goes at the tower's rate.
        rate = phase.rate if phase.kind == "vision" else phase.tower_rate
        groups += parameter_groups(vision, rate, rate)
        groups += parameter_groups([network.tower], phase.tower_rate, phase.tower_rate, patch_embedding=patches)
    if phase.kind in ("reader", "frozen", "joint"):
        groups += parameter_groups(language, phase.rate, phase.rate, head=network.model.lm_head)
    learning = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    return groups


def train(plan: Plan, out: Path, options: Options) -> bool:
    """Run the phases that are not finished; return True if all are.

    Args:
        plan: model and phases.
        out: folder of checkpoints and log; a run in it is resumed.
        options: options of the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    pool = start_workers(options.workers)
    network = Network(plan.setting, options.seed)
    finished: list[str] = []
    if (out / CHECKPOINT).exists():
        state = torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")
        network.load_state_dict(state["network"])
        finished = state["finished"]
    elif options.begin:
        finished = begin_with(network, plan, options.begin)
        save(network, finished, out)
    if options.device == "cpu" and has_bfloat16("cpu"):
        write_out_attention(network.tower, network.language_model)
    if options.compiled:
        network.language_model.compile(dynamic=True)
    try:
        for phase in plan.phases:
            if phase.name in finished or (options.only and phase.name not in options.only):
                continue
            if not train_job(phase_job(network, phase, out / phase.name, options, pool)):
                return False
            if phase.kind == "tower" and phase.named == "slots":
                network.begin_projector()
            finished = [*finished, phase.name]
            save(network, finished, out)
            append_log(out / phase.name, phase.name, out / "log.jsonl")
    finally:
        if pool is not None:
            pool.terminate()
    return True


def save(network: Network, finished: list[str], out: Path) -> None:
    """Write the network of the finished phases into a run's folder."""
    with replace_file(out / CHECKPOINT) as file:
        torch.save({"network": network.state_dict(), "finished": finished}, file)


@torch.no_grad()
def begin_with(network: Network, plan: Plan, files: Sequence[Path]) -> list[str]:
    """Take what the finished phases of other runs trained, and return the names of these phases.

    The halves of the network can so be trained at the same time, each by a run of its own, or the same half by two
    runs that see other pages: of runs that finished the same phase, the mean of the weights is taken.

    Args:
        network: network of the new run.
        plan: plan of all the runs.
        files: their checkpoints, or files of `export`.

    Raises:
        ValueError: a file is of another plan: a finished phase is not in it, or a weight has another shape.
    """
    states = [torch.load(file, weights_only=True, map_location="cpu") for file in files]
    own, finished = network.state_dict(), []
    names = [phase.name for phase in plan.phases]
    for file, state in zip(files, states, strict=True):
        if others := [name for name in state["finished"] if name not in names]:
            raise ValueError(f"{file} is of another plan: it finished {others}, the plan has {names}")
    for phase in plan.phases:
        done = {file: state for file, state in zip(files, states, strict=True) if phase.name in state["finished"]}
        if not done:
            continue
        for name in (name for name in own if name.startswith(HALVES[phase.kind])):
            found = []
            for file, state in done.items():
                theirs = state["network"].get(name)
                if theirs is None or theirs.shape != own[name].shape:
                    shape = None if theirs is None else tuple(theirs.shape)
                    raise ValueError(f"{file} is of another plan: {name} is {shape}, not {tuple(own[name].shape)}")
                found.append(theirs.float())
            own[name].copy_(torch.stack(found).mean(dim=0))
        finished.append(phase.name)
    return finished


def export(out: Path, file: Path) -> None:
    """Write the network of a run's finished phases in bfloat16.

    Args:
        out: folder of the run.
        file: file that `begin_with` reads.
    """
    state = torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")
    network = {name: value.bfloat16() for name, value in state["network"].items()}
    with replace_file(file) as opened:
        torch.save({"network": network, "finished": state["finished"]}, opened)


def phase_job(network: Network, phase: Phase, out: Path, options: Options, pool: Any) -> Job:
    """Return one phase of a plan.

    Args:
        network: network with the weights of the phase before.
        phase: the phase.
        out: folder of the phase.
        options: options of the run.
        pool: processes that draw pages, or None.
    """
    (begin, end), score = phase.cosine, SCORES[phase.kind]

    def loss(samples: list[Sample], step: int) -> tuple[torch.Tensor, Measures]:
        with mixed_precision(options.device):
            found = score(network, phase, samples, options.device)
        return found.loss, found.measures

    return Job(
        out,
        network,
        loss,
        lambda first: stream_batches(network.setting, phase, options.seed, first, pool),
        phase.steps,
        phase_groups(network, phase),
        lambda done: cosine(begin + (end - begin) * done / phase.steps, (done + 1) / WARMUP),
        device=options.device,
        seed=options.seed,
        stop=options.stop,
    )
