"""Write data of the form that `docs/own-data.md` describes: small price tags with one question each.

python examples/finetune_own_data/make_data.py own-data
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw


def write(folder: Path, train: int = 64, test: int = 16) -> None:
    """Write `train.jsonl`, `test.jsonl` and `images`."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w") as samples, (folder / "test.jsonl").open("w") as questions:
        for index in range(train + test):
            price = f"{rng.randint(1, 9)}.{rng.randint(0, 9)}0"
            image = Image.new("RGB", (112, 112), "white")
            ImageDraw.Draw(image).text((20, 40), price, fill="black", font_size=28)
            name = f"{index:04}.png"
            image.save(folder / "images" / name)
            question = "What is the price?"
            if index < train:
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": price}]
                samples.write(json.dumps({"image": name, "conversations": turns}) + "\n")
            else:
                questions.write(json.dumps({"image": name, "question": question, "answer": price}) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "own-data"))
