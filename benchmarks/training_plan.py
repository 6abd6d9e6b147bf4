"""Memory and time of the published stages on many devices: calculated from sizes, nothing is run.

    python benchmarks/training_plan.py --devices 64 --peak-tflops 989

Prints a Markdown table. What is assumed (tokens and views of a sample, share of the peak) stands in the recipes and in
`llava_uhd/training/plan.py`.
"""

import argparse
from math import gcd

from llava_uhd.training.plan import ASSUMED_UTILISATION, make_plan
from llava_uhd.training.recipe import TuningRecipe, load_recipe

RECIPES = [
    f"{family}-{stage}" for family in ("vicuna-7b", "vicuna-13b", "qwen2-7b", "v1") for stage in ("align", "instruct")
]
RECIPES += ["vicuna-7b-instruct-lora", "vicuna-7b-instruct-qlora"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of one device in bf16")
    options = parser.parse_args()
    print("| recipe | trained parameters | samples a device | steps | DDP | FSDP2 | ZeRO-2 | EFLOP | hours |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in RECIPES:
        published = load_recipe(name)
        assert isinstance(published, TuningRecipe)
        micro = gcd(published.optimization.micro_batch, published.optimization.global_batch // options.devices)
        overrides = [f"optimization.micro_batch={micro}", f"monitoring.peak_tflops={options.peak_tflops}"]
        recipe = load_recipe(name, overrides)
        assert isinstance(recipe, TuningRecipe)
        plan = make_plan(recipe, options.devices)
        assert plan.petaflop is not None and plan.hours is not None
        trained = sum(row.trainable for row in plan.parts) / 1e6
        memory = " | ".join(
            f"{plan.memory_gib[strategy]:.0f} GiB" if strategy in plan.memory_gib else ""
            for strategy in ("ddp", "fsdp2", "zero2")
        )
        print(
            f"| `{name}` | {trained:,.0f} M | {micro} | {plan.steps:,} | {memory} "
            f"| {plan.petaflop / 1000:,.1f} | {plan.hours:.2f} |"
        )
    print(f"\nHours at {ASSUMED_UTILISATION:.0%} of {options.peak_tflops:g} TFLOP/s on {options.devices} devices.")


if __name__ == "__main__":
    main()
