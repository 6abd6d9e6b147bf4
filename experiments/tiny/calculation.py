"""Operations and hours of a plan, from the sizes of the model: what a run should take before it is run."""

from .network import Network
from .setting import Phase, Plan, Setting

# Operations a second that training reaches on one core, measured (README.md).
CORE = 55e9
CORES = 2
# Seconds of one core for a page: drawn and cut into views, of random characters, or laid out only.
DRAWN, SCRIBBLED, LAID_OUT = 0.08, 0.17, 0.02
# Part of the most slices of a phase that its pages have on average (`samples.draw_document`).
FILLED = 0.7
# A training step costs three times the operations of a forward pass.
TRAINING = 3


def tower_operations(setting: Setting, patches: float) -> float:
    """Forward operations of the tower, for so many patches in views of `view_size`²."""
    width, layers = setting.vision_width, setting.vision_layers
    view = (setting.view_size // setting.patch_size) ** 2
    per_patch = layers * (24 * width**2 + 4 * view * width) + 2 * 3 * setting.patch_size**2 * width
    return patches * per_patch


def text_operations(setting: Setting, tokens: float, length: float) -> float:
    """Forward operations of the language model, for so many tokens in sequences of a length."""
    width, kept = setting.width, setting.key_value_heads / setting.text_heads
    linear = 2 * (width**2 * (2 + 2 * kept) + 3 * width * setting.intermediate)
    return tokens * setting.text_layers * (linear + 2 * length * width)


def step_operations(setting: Setting, phase: Phase) -> float:
    """Operations of one training step of a phase."""
    if phase.kind == "vision":
        return TRAINING * tower_operations(setting, phase.tokens) * (1.4 if phase.projector else 1.0)
    length = min(phase.tokens, (phase.views + 1) * setting.query_grid**2 + 40 * phase.questions)
    operations = text_operations(setting, phase.tokens, length)
    if phase.kind == "joint":
        operations += 1.4 * (1 - phase.symbols) * tower_operations(setting, phase.tokens)
    return TRAINING * operations


def step_seconds(setting: Setting, phase: Phase) -> float:
    """Seconds of one core that drawing the pages of a step takes."""
    views = FILLED * phase.views + 1
    pages = phase.tokens / (views * setting.query_grid**2)
    coded = 1.0 if phase.kind == "reader" else phase.symbols
    drawn = phase.scribble * SCRIBBLED + (1 - phase.scribble) * DRAWN
    return pages * (coded * LAID_OUT + (1 - coded) * drawn)


def describe_plan(plan: Plan) -> str:
    """The plan as a Markdown table, with the number of parameters above it."""
    network = Network(plan.setting)
    parts = {"tower": network.tower, "projector": network.projector, "language model": network.language_model,
             "all": network.model}  # fmt: skip
    sizes = {name: sum(each.numel() for each in part.parameters()) / 1e6 for name, part in parts.items()}
    lines = [
        ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items()) + f"; {2 * sizes['all']:.1f} MB in bfloat16",
        "",
        "| phase | steps | tokens a step | operations a step | hours of two cores | of these for drawing |",
        "|---|---|---|---|---|---|",
    ]
    total = drawing = 0.0
    for phase in plan.phases:
        operations = step_operations(plan.setting, phase)
        drawn = phase.steps * step_seconds(plan.setting, phase) / CORES / 3600
        hours = phase.steps * operations / (CORES * CORE) / 3600 + drawn
        total, drawing = total + hours, drawing + drawn
        lines.append(
            f"| {phase.name} | {phase.steps:,} | {phase.tokens:,} | {operations / 1e9:,.0f} G | {hours:.1f} | "
            f"{drawn:.1f} |"
        )
    lines.append(f"| all | | | | {total:.1f} | {drawing:.1f} |")
    return "\n".join(lines)
