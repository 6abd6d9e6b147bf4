"""Stages 1 and 2: from a recipe to a trained model in `<out>/model`.

A run resumes from its last complete checkpoint on any number of devices: the global batch and the sample order do not
depend on it.
"""

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from ..distributed import Rank
from ..files import lock_folder, new_folder
from ..model_folder import seal_model
from .adapters import add_adapters
from .assembly import build_model
from .data.collation import Collator
from .data.encoding import Encoder
from .data.mixture import Mixture
from .data.order import EpochOrder
from .folder import check_data, check_folder, claim_folder, record_data
from .loss import use_training_forward
from .parts import ParameterCounts, check_trainable, group_of, table, train_only
from .plan import accumulation_of, num_steps, trained_parts, with_present_groups
from .recipe import Recipe, TuningRecipe, recipe_text
from .trainer import StageTrainer, last_checkpoint
from .watch import ThroughputMeter

MODEL = "model"


@dataclass(frozen=True)
class Trained:
    """Result of a run.

    Attributes:
        model: folder with the trained model.
        steps: number of steps, including those before a resumption.
        loss: mean training loss at the last log.
        held_out_loss: last measured held-out loss, None without held-out data.
        resumed_from: checkpoint that the run resumed from.
        parts: parameter counts by parameter group.
    """

    model: str
    steps: int
    loss: float | None
    held_out_loss: float | None
    resumed_from: str | None
    parts: list[ParameterCounts]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_stage(recipe: TuningRecipe) -> Trained:
    """Run a stage to its end.

    Raises:
        ValueError: recipe, data, model and folder do not fit together.
        RunStopped: the run cannot go on.
    """
    out, rank = Path(recipe.out), Rank.from_environment()
    accumulation = accumulation_of(recipe, rank.count)
    if not recipe.data.train:
        raise ValueError("data.train: there are no sources")
    # Lock of the first rank: a second run in the same folder is rejected.
    with lock_folder(out) if rank.is_main else nullcontext():
        arguments = training_arguments(recipe, accumulation)
        resumed = find_checkpoint(recipe, out, MODEL, arguments)
        return _train(recipe, arguments, resumed, rank.count)


def find_checkpoint(
    recipe: Recipe, out: Path, product: str, arguments: TrainingArguments, begun: bool = False
) -> Path | None:
    """Return the checkpoint to resume from: found and checked by the first rank, the same for all.

    Args:
        recipe: recipe of the run.
        out: folder of the run.
        product: name of the output of a finished run.
        arguments: arguments of the trainer.
        begun: True if the folder holds the state of an earlier version, which is no checkpoint.

    Raises:
        ValueError: the run may not start or resume in its folder; raised on every rank.
    """
    found: list[Any] = [None, None]  # checkpoint, error
    if arguments.process_index == 0:
        try:
            found[0] = last_checkpoint(out)
            check_folder(recipe, out, product, begun=begun or found[0] is not None, checkpoint=found[0])
        except ValueError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise ValueError(found[1])
    return found[0]


def _train(recipe: TuningRecipe, arguments: TrainingArguments, resumed: Path | None, devices: int) -> Trained:
    out = Path(recipe.out)
    model, processor = build_model(recipe)
    text = recipe_text(recipe)
    claimed, recipe = recipe, with_present_groups(recipe, model, model.config)
    config, parts = model.config, trained_parts(recipe)
    encoder = Encoder(processor, recipe.data)
    dataset = partial(Mixture, encoder=encoder, seed=recipe.seed, report=out / "left-out.jsonl")
    train = dataset(recipe.data.train, fatal=recipe.data.on_bad_sample == "fatal")
    check_data(out, train.fingerprint(), begun=resumed is not None)
    held_out = dataset(recipe.data.held_out) if recipe.data.held_out else None
    if held_out is not None and all(held_out[index] is None for index in range(len(held_out))):
        raise ValueError(
            f"data.held_out: none of its {len(held_out)} samples can be used; {out / 'left-out.jsonl'} says why"
        )
    optimization = recipe.optimization
    if recipe.schedule.max_steps:
        # The trainer would run on past the epochs.
        arguments.max_steps = num_steps(recipe, len(train))
    order = EpochOrder(
        train.lengths,
        train.has_images,
        optimization.global_batch,
        recipe.seed,
        by_modality=recipe.data.group == "modality",
    )

    use_training_forward(model, optimization.loss_chunk)
    trainee = add_adapters(model, recipe.lora) if recipe.lora else model
    train_only(trainee, config, parts)
    rows = table(trainee, config)
    check_trainable(rows, parts)
    _lower_frozen(trainee, recipe)

    trainer = StageTrainer(
        model=trainee,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=Collator(processor.tokenizer.pad_token_id, recipe.data.pack),
        rates={"adapters": max(optimization.learning_rates.values()), **optimization.learning_rates},
        group_of=partial(group_of, config=config),
        order=order,
        meter=ThroughputMeter(config, parts, devices, recipe.monitoring.peak_tflops),
        max_loss_rise=recipe.monitoring.max_loss_rise,
        checkpoints_kept=recipe.checkpoints.keep,
        recipe_text=text,
    )
    _refuse_zero3(trainer)
    if arguments.process_index == 0:
        claim_folder(claimed, out)
        record_data(out, train.fingerprint())
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    _save(trainer, recipe, processor, out)
    history = trainer.state.log_history
    return Trained(
        model=str(out / MODEL),
        steps=trainer.state.global_step,
        loss=next((entry["loss"] for entry in reversed(history) if "loss" in entry), None),
        held_out_loss=next((entry["eval_loss"] for entry in reversed(history) if "eval_loss" in entry), None),
        resumed_from=None if resumed is None else str(resumed),
        parts=rows,
    )


def training_arguments(recipe: TuningRecipe, accumulation: int) -> TrainingArguments:
    """Convert the recipe to `TrainingArguments`."""
    optimization, schedule, data = recipe.optimization, recipe.schedule, recipe.data
    monitoring = recipe.monitoring
    # Renamed in recent releases of transformers.
    fields = TrainingArguments.__dataclass_fields__
    checkpointing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in fields)
    options: dict[str, Any] = {
        checkpointing: optimization.checkpoint_activations,
        f"{checkpointing}_kwargs": {"use_reentrant": False} if optimization.checkpoint_activations else None,
    }
    return TrainingArguments(
        output_dir=recipe.out,
        per_device_train_batch_size=optimization.micro_batch,
        # Of more than one sample at a time, those that fill up the devices' last batch would be counted.
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps or -1,
        learning_rate=max(optimization.learning_rates.values()),
        lr_scheduler_type=schedule.type,
        warmup_steps=schedule.warmup,
        weight_decay=optimization.weight_decay,
        max_grad_norm=optimization.max_grad_norm,
        optim="adamw_torch",
        bf16=optimization.precision == "bf16",
        logging_steps=monitoring.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=recipe.checkpoints.save_every,
        eval_strategy="steps" if data.held_out else "no",
        eval_steps=monitoring.eval_every,
        prediction_loss_only=True,
        report_to=monitoring.report_to,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_num_workers=data.workers,
        dataloader_pin_memory=torch.accelerator.is_available(),
        ddp_find_unused_parameters=False,
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        seed=recipe.seed,
        **options,
    )


def _is_sharded() -> bool:
    """Return whether accelerate was launched with sharded weights, which need a single dtype."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))


def _lower_frozen(model: torch.nn.Module, recipe: TuningRecipe) -> None:
    if recipe.optimization.precision == "fp32" or _is_sharded():
        return
    for module in model.modules():
        # Behind what is trained, a LayerNorm gets float32, which on a CPU it takes in no lower precision than its own.
        if not isinstance(module, torch.nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.dtype == torch.float32:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _refuse_zero3(trainer: StageTrainer) -> None:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "DeepSpeed ZeRO-3 gathers the tower's weights each time it is called, and devices whose images have views "
            "of different shapes call it different numbers of times: they would wait for each other forever. "
            "Take FSDP2 (fsdp2.yaml), which shares as much, or ZeRO-2"
        )


def _save(trainer: StageTrainer, recipe: TuningRecipe, processor: Any, out: Path) -> None:
    """Write the trained model in the precision of the run, and trained adapters."""
    accelerator = trainer.accelerator
    dtype = torch.bfloat16 if recipe.optimization.precision == "bf16" else torch.float32
    state = accelerator.get_state_dict(trainer.model_wrapped)
    trained = accelerator.unwrap_model(trainer.model_wrapped)
    if not trainer.args.should_save:
        accelerator.wait_for_everyone()
        return
    if recipe.lora is not None:
        from peft import PeftModel

        trained.save_pretrained(out / "adapter", state_dict=state)
        # Anew and whole: the weights under training may be shared among devices, or in four bits.
        base, _ = build_model(replace(recipe, lora=None))
        trained = PeftModel.from_pretrained(base, out / "adapter").merge_and_unload()
        state = trained.state_dict()
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    # This folder marks a finished run.
    with new_folder(out / MODEL) as folder:
        trained.save_pretrained(folder, state_dict=state)
        trained.config.dtype = dtype
        trained.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        seal_model(folder)
    accelerator.wait_for_everyone()
