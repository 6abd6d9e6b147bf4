"""Operations and hours of a plan, from the sizes of the model: what a run should take before it is run."""

import math

from llava_uhd.flops import PartFlops, language_flops, projector_flops, standard_shape, tower_flops, training_flops

from .network import Network
from .setting import Phase, Plan, Setting, build_config
from .symbols import NUM_PLAIN, NUM_SYMBOLS

# Operations a second that training reaches on one core, measured (README.md).
CORE = 55e9
CORES = 2
# Seconds of one core for a page: drawn and cut into views, of random characters, or laid out only.
DRAWN, SCRIBBLED, LAID_OUT = 0.08, 0.17, 0.02
# Part of the most slices of a phase that its pages have on average (`samples.draw_document`).
FILLED = 0.5
# Part of the image tokens that hold characters: 0.25 of the codes of 1,400 pages of one view.
PRINTED = 0.25
# Parts that learn in each kind of phase, by the names of `training_flops`.
TRAINED = {
    "tower": ("vision_tower",),
    "vision": ("vision_tower", "upsampler", "projector"),
    "reader": ("language_model",),
    "frozen": ("language_model",),
    "joint": ("vision_tower", "upsampler", "projector", "language_model"),
}


def vision_operations(setting: Setting, views: float) -> PartFlops:
    """Count the forward pass of some views of `view_size`² up to the projector's tokens."""
    config = build_config(setting)
    shape = standard_shape(config)
    projector = projector_flops(config, shape)
    return PartFlops(
        views * tower_flops(config, shape),
        views * projector.upsampler,
        views * projector.projector,
        language_model=0.0,
    )


def step_operations(setting: Setting, phase: Phase) -> float:
    """Count the operations of one training step of a phase."""
    views = phase.tokens / (setting.view_size // setting.patch_size) ** 2
    if phase.kind == "tower":
        named = math.prod(setting.cells) * NUM_PLAIN
        if phase.named == "slots":
            # The token of a window, and its comparison with the code's vectors.
            named += setting.width + setting.slots * NUM_SYMBOLS
        tower = vision_operations(setting, views).vision_tower + 2 * phase.tokens * setting.vision_width * named
        return training_flops(PartFlops(tower, 0.0, 0.0, 0.0), TRAINED["tower"])
    if phase.kind == "vision":
        return training_flops(vision_operations(setting, views), TRAINED["vision"])
    # Image tokens of a page, of which the sequence has only a part where blank ones are left out.
    image = FILLED * (phase.views + 1) * setting.query_grid**2
    length = min(phase.tokens, image * (phase.blanks + (1 - phase.blanks) * PRINTED) + 40 * phase.questions)
    samples = phase.tokens / length
    # Half of the questions' tokens are answers, whose logits are computed.
    text = samples * language_flops(build_config(setting), round(length), 20 * phase.questions)
    views = samples * image / setting.query_grid**2 * (1 - phase.symbols) if phase.kind in ("frozen", "joint") else 0.0
    vision = vision_operations(setting, views)
    forward = PartFlops(vision.vision_tower, vision.upsampler, vision.projector, text)
    return training_flops(forward, TRAINED[phase.kind])


def step_seconds(setting: Setting, phase: Phase) -> float:
    """Return the seconds of one core that rendering the pages of a step takes."""
    if phase.kind == "tower":
        pages = phase.tokens / (phase.crops * (setting.view_size // setting.patch_size) ** 2)
    else:
        image = FILLED * (phase.views + 1) * setting.query_grid**2
        printed = 1.0 if phase.kind == "vision" else phase.blanks + (1 - phase.blanks) * PRINTED
        pages = phase.tokens / (image * printed + (0 if phase.kind == "vision" else 40 * phase.questions))
    coded = 1.0 if phase.kind == "reader" else phase.symbols
    drawn = phase.scribble * SCRIBBLED + (1 - phase.scribble) * DRAWN
    return pages * (coded * LAID_OUT + (1 - coded) * drawn)


def describe_plan(plan: Plan) -> str:
    """Return the plan as a Markdown table, with the number of parameters above it."""
    network = Network(plan.setting)
    parts = {"tower": network.tower, "projector": network.projector, "language model": network.language_model,
             "all": network.model}  # fmt: skip
    sizes = {name: sum(each.numel() for each in part.parameters()) / 1e6 for name, part in parts.items()}
    lines = [
        ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items()) + f"; {2 * sizes['all']:.1f} MB in bfloat16",
        "",
        "| phase | steps | tokens a step | operations a step | hours of two cores | of these for rendering |",
        "|---|---|---|---|---|---|",
    ]
    total = rendering = 0.0
    for phase in plan.phases:
        operations = step_operations(plan.setting, phase)
        rendered = phase.steps * step_seconds(plan.setting, phase) / CORES / 3600
        hours = phase.steps * operations / (CORES * CORE) / 3600 + rendered
        total, rendering = total + hours, rendering + rendered
        lines.append(
            f"| {phase.name} | {phase.steps:,} | {phase.tokens:,} | {operations / 1e9:,.0f} G | {hours:.1f} | "
            f"{rendered:.1f} |"
        )
    lines.append(f"| all | | | | {total:.1f} | {rendering:.1f} |")
    return "\n".join(lines)
