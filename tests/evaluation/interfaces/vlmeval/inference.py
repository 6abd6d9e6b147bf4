"""Asks a model object everything in a data set and leaves the predictions in a file."""

import json
from pathlib import Path


def infer_data_job(model, work_dir, model_name, dataset):
    rows = [
        {**row, "prediction": model.generate(dataset.build_prompt(row), dataset=dataset.dataset_name)}
        for row in dataset.rows
    ]
    for row in rows:
        del row["image"]
    (Path(work_dir) / f"{model_name}_{dataset.dataset_name}.json").write_text(json.dumps(rows))
