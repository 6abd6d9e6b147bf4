"""`llava-uhd data check`: sample counts, broken samples and token counts of the sources.

The manifest has a line per sample, in order: its hash, its images with sizes and hashes, its number of tokens. It
detects data changes between two runs, and allows batching by length without opening an image.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...files import write_text
from ...model.images import decode_image
from ...model.processing_llava_uhd import LlavaUhdProcessor
from ..recipe import Source
from .conversations import IMAGE, BadSample, read_conversation
from .sources import Samples, open_source


@dataclass
class CheckReport:
    """Result of checking a source.

    Attributes:
        samples: number of samples.
        broken: number of samples that cannot be used.
        text_only, multi_image: numbers of usable samples without images and with several.
        images: number of images in all usable samples.
        turns: number of answers in all usable samples.
        tokens: approximate number of training tokens; exact except for special tokens. None without a processor.
        longest: tokens of the longest sample.
        problems: index and reason of the first broken samples.
        reasons: number of occurrences of each kind of problem.
    """

    samples: int = 0
    broken: int = 0
    text_only: int = 0
    multi_image: int = 0
    images: int = 0
    turns: int = 0
    tokens: int | None = None
    longest: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_source(
    source: Source,
    processor: LlavaUhdProcessor | None = None,
    max_slices: int | None = None,
    manifest: Path | None = None,
    max_problems: int = 20,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> CheckReport:
    """Check all samples and decode all images.

    Args:
        source: source to check.
        processor: processor that counts tokens; None skips counting.
        max_slices: maximum number of slices of an image; None takes the processor's.
        manifest: manifest file to write.
        max_problems: maximum number of broken samples to list.
        show: progress callback that receives samples done and total samples.
    """
    samples = open_source(source)
    report = CheckReport(samples=len(samples), tokens=0 if processor else None)
    reasons: Counter[str] = Counter()
    lines = []
    for index in range(len(samples)):
        try:
            line = _check_sample(samples, index, processor, max_slices, report)
        except BadSample as error:
            report.broken += 1
            reasons[type(error.__cause__).__name__ if error.__cause__ else "form"] += 1
            if len(report.problems) < max_problems:
                report.problems.append({"index": index, "reason": str(error)})
            line = {"index": index, "broken": str(error), "num_tokens": 0}
        lines.append(json.dumps(line))
        show(index + 1, len(samples))
    report.reasons = {
        {"ValueError": "image", "JSONDecodeError": "JSON", "UnicodeDecodeError": "JSON"}.get(k, k): n
        for k, n in reasons.items()
    }
    if manifest is not None:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        write_text(manifest, "\n".join(lines) + "\n")
    return report


def _check_sample(
    samples: Samples,
    index: int,
    processor: LlavaUhdProcessor | None,
    max_slices: int | None,
    report: CheckReport,
) -> dict[str, Any]:
    record = samples.record(index)
    conversation = read_conversation(record)
    images, num_tokens = [], 0
    for name in conversation.images:
        file = samples.image(index, name)
        try:
            image = decode_image(file)
            content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
            if processor is not None:
                fitted = processor.image_processor.fit_letters(image, max_slices=max_slices)
                num_tokens += processor.image_layout(*fitted.size, max_slices=max_slices).length
        except (ValueError, OSError) as error:
            raise BadSample(str(error)) from error
        images.append(
            {
                "name": name if isinstance(name, str) else None,
                "size": list(image.size),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    if processor is not None:
        text = conversation.text.replace(IMAGE, "")
        num_tokens += len(processor.tokenizer(text, verbose=False)["input_ids"])
        report.tokens = (report.tokens or 0) + num_tokens
    report.longest = max(report.longest, num_tokens)
    report.images += len(images)
    report.text_only += not images
    report.multi_image += len(images) > 1
    report.turns += sum(message["role"] == "assistant" for message in conversation.messages)
    text_hash = hashlib.sha256(
        json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
    return {"index": index, "sha256": text_hash, "images": images, "num_tokens": num_tokens}
