"""Writes the archive of the task `webdocs`.

    python -m benchmarks.webdocs --out llava_uhd/assets/webdocs.zip

Needs Chromium and Tesseract (Debian: chromium, tesseract-ocr), the fonts of FONTS.txt, and the packages playwright,
reportlab, pypdfium2, matplotlib and scikit-image. Every answer is right by construction; Tesseract then looks for the
printed ones, and the share that it finds is reported and kept with each question.
"""

import argparse
import io
import json
import random
import re
import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from . import html_pages, pdf_pages, plots
from .page import NO_DOCUMENT, SHOWN, Page, Question

PHOTOGRAPHS = ("astronaut.png", "chelsea.png")
ASKED = ("What is the total?", "Who signed this?", "What is the date?", "What is written in the first line?",
         "How much does the bread cost?", "Which number is given?")  # fmt: skip
PER_PAGE = 4
QUALITY = 55


def make_pages(count: int, seed: int, chromium: str) -> list[Page]:
    """All documents.

    Args:
        count: number of documents of each HTML kind; PDFs and charts are half as many per kind.
        seed: seed of all draws.
        chromium: path of the browser.
    """
    drafts = []
    for kind, (make, lines) in html_pages.DRAFTS.items():
        for index in range(count):
            rng = random.Random(f"webdocs:{seed}:{kind}:{index}")
            drafts.append((rng, make(rng, rng.randint(*lines))))
    pages = html_pages.draw(drafts, chromium)
    for make_pdf in pdf_pages.KINDS:
        for index in range(count // 2 + 1):
            pages.append(make_pdf(random.Random(f"webdocs:{seed}:{make_pdf.__name__}:{index}")))
    for sort in plots.SORTS:
        for index in range(count // 2):
            pages.append(plots.plot(random.Random(f"webdocs:{seed}:{sort}:{index}"), sort))
    return pages + make_pictures(seed, count)


def make_pictures(seed: int, count: int) -> list[Page]:
    """Parts of photographs of which no training image is made; each is asked one question."""
    import matplotlib

    found = find_spec("skimage")
    assert found is not None and found.origin is not None, "scikit-image is missing"
    files = [Path(found.origin).parent / "data" / name for name in PHOTOGRAPHS]
    files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    pages = []
    for index in range(count):
        rng = random.Random(f"webdocs:{seed}:picture:{index}")
        photograph = Image.open(files[index % len(files)]).convert("RGB")
        width, height = photograph.size
        side = rng.uniform(0.5, 1.0)
        left, top = rng.uniform(0, 1 - side) * width, rng.uniform(0, 1 - side) * height
        part = photograph.crop((int(left), int(top), int(left + side * width), int(top + side * height)))
        questions = [Question(rng.choice(ASKED), (NO_DOCUMENT,), "no document")]
        pages.append(Page("photograph", "camera", part, questions))
    return pages


def letters_of(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def recognize(image: Image.Image) -> str:
    """Letters and digits that Tesseract reads, small images enlarged twice."""
    if image.width * image.height < 1_500_000:
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    command = ["tesseract", "-", "-", "--psm", "11"]
    done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
    return letters_of(done.stdout.decode())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webdocs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="archive to write")
    parser.add_argument("--count", type=int, default=10, help="documents of each HTML kind (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="path of the browser")
    options = parser.parse_args(arguments)
    rng = random.Random(f"webdocs:{options.seed}")
    printed = found = number = 0
    with zipfile.ZipFile(options.out, "w") as archive:
        records = []
        for place, page in enumerate(make_pages(options.count, options.seed, options.chromium)):
            name = f"images/{place:03}.webp"
            file = io.BytesIO()
            page.image.save(file, "WEBP", quality=QUALITY, method=6)
            archive.writestr(_entry(name), file.getvalue())
            shown = Image.open(file).convert("RGB")
            scale = min((SHOWN / (page.image.width * page.image.height)) ** 0.5, 1.0)
            read = recognize(shown) if page.program != "camera" else ""
            # With the photographs about an eighth of the questions is to be declined.
            asked = [question for question in page.questions if question.ability != "unanswerable" or place % 3 > 0]
            for question in rng.sample(asked, k=min(PER_PAGE, len(asked))):
                size = question.print and round(scale * question.print, 1)
                legible = None
                if question.print and question.ability not in ("count", "yes/no"):
                    legible = any(letters_of(answer) in read for answer in question.answers)
                    printed, found = printed + 1, found + legible
                records.append({
                    "question_id": number, "image": name, "size": page.image.size, "question": question.text,
                    "answers": question.answers, "kind": page.kind, "program": page.program,
                    "ability": question.ability, "print": size, "ocr": legible,
                })  # fmt: skip
                number += 1
        lines = "".join(json.dumps(record) + "\n" for record in records)
        archive.writestr(_entry("questions.jsonl"), lines, zipfile.ZIP_DEFLATED)
    declined = sum(record["ability"] in ("unanswerable", "no document") for record in records)
    print(
        f"{number} questions, {declined} of them to be declined; Tesseract reads {found} of {printed} printed answers"
    )


def _entry(name: str) -> zipfile.ZipInfo:
    """Entry with a fixed time, so that the same documents give the same archive."""
    return zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))


if __name__ == "__main__":
    main()
