"""A data set from a TSV file of `LMUData`: index, image in base64, question, answer, options."""

import base64
import csv
import json
import os
from pathlib import Path

csv.field_size_limit(10**9)


class MiniDataset:
    def __init__(self, name):
        self.dataset_name = name
        self.root = Path(os.environ["LMUData"])
        with (self.root / f"{name}.tsv").open() as file:
            self.rows = list(csv.DictReader(file, delimiter="\t"))

    def dump_image(self, row):
        path = self.root / f"{row['index']}.png"
        path.write_bytes(base64.b64decode(row["image"]))
        return str(path)

    def build_prompt(self, row):
        path = self.dump_image(row)
        text = f"Question: {row['question']}\n"
        options = {letter: row[letter] for letter in "ABCD" if row.get(letter)}
        if options:
            text += "Options:\n" + "".join(f"{letter}. {option}\n" for letter, option in options.items())
            text += "Please select the correct answer from the options above. \n"
        return [{"type": "image", "value": path}, {"type": "text", "value": text}]

    def evaluate(self, file, model, nproc):
        assert model == "exact_matching"
        predictions = {row["index"]: row["prediction"] for row in json.loads(Path(file).read_text())}
        right = sum(predictions[row["index"]] == row["answer"] for row in self.rows)
        return {"Overall": right / len(self.rows)}


def build_dataset(name, **options):
    return MiniDataset(name) if (Path(os.environ["LMUData"]) / f"{name}.tsv").exists() else None
