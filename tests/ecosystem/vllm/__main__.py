"""Compare vLLM with `generate`, token id by token id; send odd requests; measure both servers.

    python -m tests.ecosystem vllm                       # in an environment of its own, which it makes
    python -m tests.ecosystem.vllm --documents 200       # with the Python of such an environment

Fails if one token id differs, or if one of the odd requests ends the server. The last line is the result.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from llava_uhd.loading import BUILT_IN, built_in

from ..documents import Question, answer_with_package, many_kinds, one_image
from .clients import ask_all, measure_in_turns
from .models import qwen2_like, qwen3_like, vicuna_like
from .modes import ADAPTER, MODES, lora_adapter
from .odd_requests import attack, check_rejected, more_than_two_images, rejected
from .servers import NAME, Server, own_server, vllm_server

MODE_DOCUMENTS = 16  # of each mode beyond the defaults


def compare(server: Server, kinds: dict[str, list[Question]], report: dict, model: str = NAME) -> bool:
    """Ask all questions twice, the second time from caches; return whether every token id agrees.

    Args:
        server: server to ask.
        kinds: questions with their expected answers, by kind.
        report: results to extend.
        model: name of the model or of an adapter.
    """
    agree = True
    for kind, questions in kinds.items():
        for pass_ in ("", ", cached"):
            answers = ask_all(server, questions, model)
            same = sum(ids == question.expected for ids, question in zip(answers, questions, strict=True))
            report[kind + pass_] = f"{same} of {len(questions)}"
            agree &= same == len(questions)
            print(f"  {kind}{pass_}: {same} of {len(questions)}", file=sys.stderr, flush=True)
            for ids, question in zip(answers, questions, strict=True):
                if ids != question.expected:
                    print(f"    {question.text!r}: {ids} instead of {question.expected}", file=sys.stderr)
    return agree


def check_other_backend(model_folder: str, log: Path) -> None:
    """Check that vLLM's Transformers backend refuses a folder with remote code, by the sentence of the model class.

    Raises:
        RuntimeError: the server starts, or ends for another reason.
    """
    try:
        with vllm_server(model_folder, log, "--model-impl", "transformers", "--trust-remote-code"):
            pass
    except RuntimeError as error:
        if "is not served by vLLM's Transformers backend" in log.read_text():
            return
        raise RuntimeError(f"--model-impl transformers: {error}") from error
    raise RuntimeError("--model-impl transformers: the server started")


def other_answers(
    kinds: dict[str, list[Question]], model_folder: str, max_slices: int | None = None
) -> dict[str, list[Question]]:
    """Return the questions with the answers of another model, or of images in more slices, requests as they were.

    Args:
        kinds: questions with their answers.
        model_folder: folder of the model that answers.
        max_slices: most slices of an image where the question names none.

    Raises:
        RuntimeError: three answers of four stay the same, so that the comparison would show nothing.
    """
    others = {
        kind: [replace(question, max_slices=question.max_slices or max_slices) for question in questions]
        for kind, questions in kinds.items()
    }
    answer_with_package(model_folder, [question for questions in others.values() for question in questions])
    pairs = [(a, b) for kind in kinds for a, b in zip(kinds[kind], others[kind], strict=True)]
    if 4 * (changed := sum(before.expected != after.expected for before, after in pairs)) < len(pairs):
        raise RuntimeError(f"{changed} of {len(pairs)} answers differ from those of the model as it is")
    for before, after in pairs:
        after.max_slices = before.max_slices
    return others


def compare_modes(names: Sequence[str], model_folder: str, folder: Path, report: dict) -> bool:
    """Compare the answers under `MODES` about a few documents each; return whether every token id agrees.

    Args:
        names: modes to compare.
        model_folder: folder of the model.
        folder: folder for an adapter and logs.
        report: results to extend.
    """
    agree = True
    kinds = many_kinds(MODE_DOCUMENTS, "vllm:modes", 6)
    answer_with_package(model_folder, [question for questions in kinds.values() for question in questions])
    for name in names:
        mode, served, asked = MODES[name], NAME, kinds
        options = list(mode.options)
        if mode.lora:
            adapter, merged = lora_adapter(model_folder, folder)
            asked, served = other_answers(kinds, str(merged)), ADAPTER
            options += ["--lora-modules", f"{ADAPTER}={adapter}"]
        elif mode.max_slices:
            asked = other_answers(kinds, model_folder, mode.max_slices)
        of_mode = report.setdefault(name, {})
        log = folder / "mode.log"
        try:
            with vllm_server(model_folder, log, *options, environment=dict(mode.environment)) as server:
                agree &= compare(server, asked, of_mode, served)
                if mode.lora:  # the model without the adapter, beside it
                    agree &= compare(server, {"without the adapter": kinds["one image"]}, of_mode)
                if mode.max_slices:
                    of_mode["rejected with status 400"] = check_rejected(server, more_than_two_images())
        except Exception:
            print(log.read_text()[-20000:], file=sys.stderr)
            raise
        print(json.dumps({name: of_mode}), file=sys.stderr, flush=True)
    return agree


def main() -> int:
    """Run the comparison; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--documents", type=int, default=200, help="documents of the built-in models (default 200)")
    parser.add_argument("--small", type=int, default=40, help="documents of each random model (default 40)")
    parser.add_argument("--odd", type=int, default=500, help="odd requests (default 500)")
    parser.add_argument("--speed", type=int, default=200, help="images never seen before, for speed; 0 for none")
    parser.add_argument("--only", nargs="*", help="models: small tiny vicuna qwen2 qwen3 (default: all)")
    parser.add_argument("--modes", nargs="*", choices=MODES, help="ranks and adapters (default: all, with all models)")
    parser.add_argument("--option", action="append", default=[], help="further option of `vllm serve`; repeat")
    options = parser.parse_args()
    report: dict = {}
    agree = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            **{model: partial(built_in, model) for model in BUILT_IN},
            "vicuna": lambda: str(vicuna_like(folder / "vicuna")),
            "qwen2": lambda: str(qwen2_like(folder / "qwen2")),
            "qwen3": lambda: str(qwen3_like(folder / "qwen3")),
        }
        for model in models if options.only is None else options.only:
            path = models[model]()
            count, per_kind = (options.documents, 20) if model in BUILT_IN else (options.small, 6)
            kinds = many_kinds(count, f"vllm:{model}", per_kind)
            answer_with_package(path, [question for questions in kinds.values() for question in questions])
            print(f"{model}: answered by generate", file=sys.stderr, flush=True)
            of_model = report.setdefault(model, {})
            with vllm_server(path, folder / "server.log", *options.option) as server:
                try:
                    agree &= compare(server, kinds, of_model)
                    if model == "tiny" and options.speed:
                        with own_server(path, folder / "own.log") as own:
                            servers = {"vLLM": server, "llava-uhd serve": own}
                            of_model["speed"] = measure_in_turns(servers, one_image(options.speed, "vllm:speed"))
                    if model in ("tiny", "vicuna"):
                        of_model["rejected with status 400"] = check_rejected(server, rejected())
                    if model in ("tiny", "vicuna") and options.odd:
                        statuses = attack(server, options.odd)
                        of_model["odd requests"] = {
                            str(status): count for status, count in sorted(statuses.items(), key=str)
                        }
                        agree &= compare(server, {"after odd requests": kinds["one image"][:8]}, of_model)
                except Exception:
                    print((folder / "server.log").read_text()[-20000:], file=sys.stderr)
                    raise
            if model == "vicuna":
                check_other_backend(path, folder / "server.log")
            print(json.dumps({model: of_model}), file=sys.stderr, flush=True)
        modes = (MODES if options.only is None else []) if options.modes is None else options.modes
        if modes:
            agree &= compare_modes(list(modes), str(vicuna_like(folder / "modes")), folder, report)
    print(summary(report))
    return int(not agree)


def summary(report: dict) -> str:
    """The result in one line."""
    same, total, odd, num_rejected = 0, 0, 0, 0
    for of_model in report.values():
        pairs = [value.split(" of ") for value in of_model.values() if isinstance(value, str)]
        same, total = same + sum(int(pair[0]) for pair in pairs), total + sum(int(pair[1]) for pair in pairs)
        odd += sum(of_model.get("odd requests", {}).values())
        num_rejected += of_model.get("rejected with status 400", 0)
    speeds = [
        f"{name} {speed['answers_per_second']} answers/s, {speed['cpu_seconds_per_answer']} CPU s each"
        for name, speed in report.get("tiny", {}).get("speed", {}).items()
    ]
    parts = [f"{same} of {total} answers have the token ids of generate ({', '.join(report)})"]
    parts += [f"{odd} odd requests and every server still answers"] if odd else []
    parts += [f"{num_rejected} requests rejected as documented"] if num_rejected else []
    return "; ".join(parts + speeds)


if __name__ == "__main__":
    sys.exit(main())
