"""Time of the fused projector with its options on and off: CPU seconds of alternating calls in one process.

python benchmarks/projector_options.py              # the published size
python benchmarks/projector_options.py --hidden 1024 --vision-hidden 256
"""

import argparse
import json
from statistics import median
from time import process_time

import torch

from llava_uhd.benchmark.sizes import Sizes, build

OPTIONS = {
    "off": {},
    "bin_embedding": {"bin_embedding": True},
    "aligned_windows": {"aligned_windows": True},
    "both": {"bin_embedding": True, "aligned_windows": True},
}


def main() -> None:
    """Build a projector for each option, call them in turn, print the medians as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096, help="hidden size of the language model")
    parser.add_argument("--vision-hidden", type=int, default=1024, help="channels of the tower")
    parser.add_argument("--runs", type=int, default=7, help="calls of each projector")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=["off", "both"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    projectors = {}
    for name in arguments.options:
        sizes = Sizes(hidden=arguments.hidden, vision_hidden=arguments.vision_hidden, vision_layers=1, **OPTIONS[name])
        model = build(sizes, torch.device("cpu"), torch.float32)
        projectors[name] = model.model.multi_modal_projector
    features, pixels = torch.randn(1, arguments.vision_hidden, 24, 24), torch.randn(1, 3, 336, 336)
    seconds: dict[str, list[float]] = {name: [] for name in projectors}
    with torch.no_grad():
        for run in range(arguments.runs + 1):
            for name, projector in projectors.items():
                start = process_time()
                projector(features, pixels)
                if run:  # the first call folds the weights
                    seconds[name].append(process_time() - start)
    medians = {name: round(median(times), 3) for name, times in seconds.items()}
    print(json.dumps({"cpu_seconds": medians, "runs": arguments.runs, "hidden": arguments.hidden}))


if __name__ == "__main__":
    main()
