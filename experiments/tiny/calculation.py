"""Operations and hours of a plan, from the sizes of the model: what a run should take before it is run."""

from .network import Network
from .setting import Phase, Plan, Setting

# Operations a second that training reaches on one core, measured (README.md).
CORE = 55e9
CORES = 2
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


def describe_plan(plan: Plan) -> str:
    """The plan as a Markdown table, with the number of parameters above it."""
    network = Network(plan.setting)
    parts = {"tower": network.tower, "projector": network.projector, "language model": network.language_model,
             "all": network.model}  # fmt: skip
    sizes = {name: sum(each.numel() for each in part.parameters()) / 1e6 for name, part in parts.items()}
    lines = [
        ", ".join(f"{name} {size:.2f} M" for name, size in sizes.items()) + f"; {2 * sizes['all']:.1f} MB in bfloat16",
        "",
        "| phase | steps | tokens a step | operations a step | hours by calculation | hours planned |",
        "|---|---|---|---|---|---|",
    ]
    total = planned = 0.0
    for phase in plan.phases:
        operations = step_operations(plan.setting, phase)
        hours = phase.steps * operations / (CORES * CORE) / 3600
        total, planned = total + hours, planned + phase.minutes / 60
        lines.append(
            f"| {phase.name} | {phase.steps:,} | {phase.tokens:,} | {operations / 1e9:,.0f} G | {hours:.1f} | "
            f"{phase.minutes / 60:.1f} |"
        )
    lines.append(f"| all | | | | {total:.1f} | {planned:.1f} |")
    return "\n".join(lines)
