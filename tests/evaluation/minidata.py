"""Miniature data sets in the official file formats: a few questions each, distinct images."""

import base64
import csv
import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from llava_uhd.evaluation.readers import LETTER_ANSWER, SHORT_ANSWER

SEVEN = ("mme", "ai2d", "docvqa_val", "chartqa", "textvqa", "gqa", "scienceqa_img")


def draw(path: Path, index: int) -> None:
    """Return a small image of its own color and size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (60 + 37 * index % 90, 80 + 53 * index % 70)
    image = Image.new("RGB", size, (37 * index % 256, 91 * index % 256, 155))
    image.paste((240, 240, 40), (5, 5, 20 + index % 30, 30))
    image.save(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mme(data: Path) -> None:
    root, questions = data / "MME", []
    release = root / "MME_Benchmark_release_version"
    for category, image, labels in (
        ("existence", "existence/0000.png", "existence/0000.txt"),
        ("existence", "existence/0001.png", "existence/0001.txt"),
        ("posters", "posters/images/tt01.v2.jpg", "posters/questions_answers_YN/tt01.txt"),
        ("code_reasoning", "code_reasoning/0000.png", "code_reasoning/0000.txt"),
    ):
        draw(release / image, len(questions))
        # Some official files have two spaces before their suffix.
        space = "  " if category == "code_reasoning" else " "
        lines = []
        for number, label in enumerate(("Yes", "No")):
            question = f"Is thing {number} in the {category} picture {len(questions)}?"
            lines.append(f"{question}{space}Please answer yes or no.\t{label}")
            questions.append({"question_id": image, "image": image, "text": question + SHORT_ANSWER})
        (release / labels).parent.mkdir(parents=True, exist_ok=True)
        (release / labels).write_text("\n".join(lines))
    # One question file of the LLaVA release, its questions named by their image.
    write_jsonl(root / "llava_mme.jsonl", [dict(row, category=row["image"].split("/")[0]) for row in questions])


def ai2d(data: Path) -> None:
    root, questions, annotations = data / "ai2d", [], []
    for index in range(5):
        image = f"{index}.png"
        draw(root / "ai2d_images" / image, index)
        prompt = f"Which is part {index}?\nA. root\nB. stem\nC. leaf\nD. fruit{LETTER_ANSWER}"
        questions.append({"question_id": f"{image}-{index}", "image": image, "text": prompt})
        annotations.append(
            {"question_id": f"{image}-{index}", "image": image, "question": prompt, "answer": "ABCD"[index % 4]}
        )
    write_jsonl(root / "test.jsonl", questions)
    write_jsonl(root / "test_from_mova.jsonl", annotations[::-1])


def docvqa_val(data: Path) -> None:
    rows = []
    for index in range(6):
        image = f"documents/doc{index}_1.png"
        draw(data / "docvqa" / image, index)
        rows.append(
            {
                "questionId": 100 + index,
                "question": f"What is the total of document {index}?",
                "image": image,
                "docId": index,
                "answers": [f"{index * 17}", f"{index * 17} USD"],
                "data_split": "val",
            }
        )
    write_json(data / "docvqa" / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})


def docvqa_test(data: Path) -> None:
    rows = []
    for index in range(3):
        draw(data / "docvqa" / f"documents/test{index}.png", index)
        rows.append({"questionId": index, "question": "What is the date?", "image": f"documents/test{index}.png"})
    write_json(data / "docvqa" / "test_v1.0.json", {"data": rows})


def docvqa_pair(data: Path, folder: str = "docvqa", stem: str = "docvqa") -> None:
    """The authors' own pair of files, single references, ids of -1."""
    questions, annotations = [], []
    for index in range(4):
        draw(data / folder / f"{index}.png", index)
        prompt = f"What is item {index // 2}?{SHORT_ANSWER}"
        questions.append({"question_id": -1, "image": f"{index}.png", "text": prompt})
        annotations.append({"question_id": -1, "image": f"{index}.png", "question": prompt, "answer": str(index)})
    write_jsonl(data / folder / f"{stem}_questions.jsonl", questions)
    write_jsonl(data / folder / f"{stem}_annotations.jsonl", annotations)


def chartqa(data: Path) -> None:
    for half, labels in (("human", ["14", "Yes", "57%"]), ("augmented", ["2014", "Lamb"])):
        rows = []
        for index, label in enumerate(labels):
            image = f"{half}_{index}.png"
            draw(data / "chartqa/test/png" / image, index)
            rows.append({"imgname": image, "query": "What is the highest value?", "label": label})
        write_json(data / f"chartqa/test/test_{half}.json", rows)


def textvqa(data: Path) -> None:
    root, questions, annotations = data / "textvqa", [], []
    for index in range(4):
        image_id = f"00{index // 2:02d}abcdef"
        draw(root / "train_images" / f"{image_id}.jpg", index)
        question = f"What Brand is phone {index}?"
        ocr = f"\nReference OCR token: NOKIA, {index}" if index % 2 else ""
        questions.append(
            {"question_id": image_id, "image": f"{image_id}.jpg", "text": f"{question}{ocr}{SHORT_ANSWER}"}
        )
        answers = ["nokia"] * 6 + ["Nokia."] * 2 + ["samsung"] * 2
        annotations.append({"image_id": image_id, "question_id": index, "question": question, "answers": answers})
    write_jsonl(root / "llava_textvqa_val_v051_ocr.jsonl", questions)
    write_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": annotations})


def gqa(data: Path) -> None:
    root, questions, labels = data / "gqa", [], {}
    for index, (answer, structural) in enumerate((("yes", "verify"), ("dog", "query"), ("left", "choose"))):
        draw(root / "data/images" / f"n{index}.jpg", index)
        text = f"Question {index}?{SHORT_ANSWER}"
        questions.append(
            {"question_id": str(200 + index), "image": f"n{index}.jpg", "text": text, "category": "default"}
        )
        labels[str(200 + index)] = {
            "question": f"Question {index}?",
            "answer": answer,
            "isBalanced": True,
            "types": {"structural": structural},
            "imageId": f"n{index}",
        }
    write_jsonl(root / "llava_gqa_testdev_balanced.jsonl", questions)
    write_json(root / "data/testdev_balanced_questions.json", labels)


def scienceqa_img(data: Path) -> None:
    root, questions, problems = data / "scienceqa", [], {}
    for index in range(5):
        number = str(11 + index)
        has_image = index % 2 == 0
        row = {
            "id": number,
            "conversations": [
                {"from": "human", "value": ("<image>\n" if has_image else "") + f"Question {index}?\nA. yes\nB. no"},
                {"from": "gpt", "value": "The answer is A."},
            ],
        }
        if has_image:
            row["image"] = f"{number}/image.png"
            draw(root / "images/test" / row["image"], index)
        questions.append(row)
        problems[number] = {"choices": ["yes", "no"], "answer": index % 2, "split": "test"}
    write_json(root / "llava_test_CQM-A.json", questions)
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", {"test": list(problems), "val": []})


def pope(data: Path) -> None:
    root, questions = data / "pope", []
    for category in ("adversarial", "popular", "random"):
        labels = []
        for index, label in enumerate(("yes", "no")):
            image = f"COCO_val2014_{index:012d}.jpg"
            draw(root / "val2014" / image, index)
            text = f"Is there a {category} snowboard in the image?"
            questions.append(
                {"question_id": len(questions), "image": image, "text": text + SHORT_ANSWER, "category": category}
            )
            labels.append({"question_id": index + 1, "image": image, "text": text, "label": label})
        write_jsonl(root / f"coco/coco_pope_{category}.json", labels[::-1])
    write_jsonl(root / "llava_pope_test.jsonl", questions)


def plain(data: Path, folder: str, file: str, images: str, count: int = 3) -> None:
    """Question files without labels: VQAv2, VizWiz, MM-Vet."""
    rows = []
    for index in range(count):
        draw(data / folder / images / f"im{index}.jpg", index)
        rows.append({"question_id": index, "image": f"im{index}.jpg", "text": f"Question {index}?{SHORT_ANSWER}"})
    write_jsonl(data / folder / file, rows)


def vqav2(data: Path) -> None:
    plain(data, "vqav2", "llava_vqav2_mscoco_test-dev2015.jsonl", "test2015", 2)
    plain(data, "vqav2", "llava_vqav2_mscoco_test2015.jsonl", "test2015", 4)


def vizwiz(data: Path) -> None:
    plain(data, "vizwiz", "llava_test.jsonl", "test")


def mm_vet(data: Path) -> None:
    plain(data, "mm-vet", "llava-mm-vet.jsonl", "images")


def mmbench(data: Path) -> None:
    path = data / "mmbench" / "mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    buffer = BytesIO()
    Image.new("RGB", (70, 50), "red").save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(columns)
        for index, options, answer in ((7, ["red", "green", "", ""], "A"), (1_000_007, ["green", "red", "", ""], "B")):
            writer.writerow([index, "Which colour?", "nan", *options, answer, "colour", encoded, "me", "fine"])


def seed(data: Path) -> None:
    root = data / "seed_bench"
    rows, labels = [], []
    for index, kind in enumerate(("image", "video", "image")):
        image = f"SEED-Bench-{kind}/{index}.png"
        draw(root / image, index)
        text = f"Which?\nA. a\nB. b\nC. c\nD. d{LETTER_ANSWER}"
        rows.append({"question_id": index, "image": image, "text": text})
        labels.append({"question_id": str(index), "question_type_id": index + 1, "data_type": kind, "answer": "B"})
    write_jsonl(root / "llava-seed-bench.jsonl", rows)
    write_json(
        root / "SEED-Bench.json", {"question_type": {"Scene": 1, "Action": 2, "Text": 3}, "questions": labels[::-1]}
    )


def refcoco(data: Path) -> None:
    root = data / "rec"
    rows, labels = [], []
    for index, split in enumerate(("REC_refcoco_unc_val", "REC_refcoco_unc_testA")):
        draw(root / "images/train2017" / f"{index}.jpg", index)
        rows.append({"question_id": index, "image": f"{index}.jpg", "text": "Where is the dog?", "category": split})
        labels.append({"question_id": index, "image": f"{index}.jpg", "label": "[0.1, 0.2, 0.5, 0.6]"})
    write_jsonl(root / "questions.jsonl", rows)
    write_jsonl(root / "annotations.jsonl", labels)


def ocrbench(data: Path) -> None:
    root, rows = data / "ocrbench", []
    for index, (kind, answers) in enumerate(
        (
            ("Regular Text Recognition", ["Sale"]),
            ("Doc-oriented VQA", ["12 USD", "12"]),
            ("Handwritten Mathematical Expression Recognition", "x ^ 2"),
        )
    ):
        draw(root / "OCRBench_Images" / f"set/{index}.png", index)
        rows.append(
            {
                "dataset_name": "mini",
                "type": kind,
                "id": index,
                "question": f"What is written in image {index}?",
                "answers": answers,
                "image_path": f"set/{index}.png",
            }
        )
    write_json(root / "OCRBench.json", rows)


BUILDERS = {
    "mme": mme,
    "ai2d": ai2d,
    "docvqa_val": docvqa_val,
    "docvqa_test": docvqa_test,
    "chartqa": chartqa,
    "textvqa": textvqa,
    "gqa": gqa,
    "scienceqa_img": scienceqa_img,
    "pope": pope,
    "vqav2": vqav2,
    "vizwiz": vizwiz,
    "mmbench": mmbench,
    "seed": seed,
    "refcoco": refcoco,
    "mm_vet": mm_vet,
    "ocrbench": ocrbench,
}


def build(data: Path, *names: str) -> Path:
    """Write the mini data sets of these benchmarks below a folder."""
    for name in names:
        BUILDERS[name](data)
    return data
