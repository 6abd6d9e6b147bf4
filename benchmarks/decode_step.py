"""CPU seconds of a decoding step by KV cache: buffers that grow in place, and transformers' cache that copies.

    python benchmarks/decode_step.py                        # tiny, 8 requests of 600 and of 1,500 tokens
    python benchmarks/decode_step.py --requests 1 --lengths 600

Both decode the same tokens, step by step in turn; their logits must be equal to the last bit.
"""

import argparse
import json
import time
from statistics import median

import torch
from transformers import DynamicCache

from llava_uhd import load
from llava_uhd.generation.decoding import Decoder


@torch.inference_mode()
def measure(decoder: Decoder, requests: int, length: int, steps: int) -> dict[str, object]:
    """Decode some steps with either cache after prompts of random tokens; return the medians of both."""
    generator = torch.Generator().manual_seed(0)
    caches: dict[str, list[DynamicCache]] = {"in place": [], "copied": []}
    for _ in range(requests):
        prompt = torch.randint(5, 100, (1, length), generator=generator)
        caches["in place"].append(decoder.read(prompt)[1])
        caches["copied"].append(decoder.read(prompt, cache=DynamicCache(config=decoder.language_config))[1])
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    for step in range(steps + 2):
        logits = []
        for name, of_requests in caches.items():
            start = time.process_time()
            logits.append(decoder.step([5 + step % 90] * requests, [length + step] * requests, of_requests))
            seconds[name].append(time.process_time() - start)
        if not torch.equal(*logits):
            raise RuntimeError(f"the logits of step {step} differ between the caches")
    ms = {f"{name}, ms": round(1000 * median(times[2:]), 2) for name, times in seconds.items()}
    return {"requests": requests, "tokens": length, "steps": steps, **ms}


def main() -> None:
    """Print one JSON object for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="model by name, folder or hub id (default: tiny)")
    parser.add_argument("--requests", type=int, default=8, help="requests of a step (default: 8)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[600, 1500], help="tokens before the first step")
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each cache (default: 40)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, _ = load(options.model)
    decoder = Decoder(model, options.requests)
    for length in options.lengths:
        print(json.dumps(measure(decoder, options.requests, length, options.steps)), flush=True)


if __name__ == "__main__":
    main()
