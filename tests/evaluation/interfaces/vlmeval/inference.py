"""Asks a model object everything in a data set and leaves the predictions in a file."""

import json
from pathlib import Path


def infer_data_job(model, work_dir, model_name, dataset):
    name = dataset.dataset_name
    model.set_dump_image(dataset.dump_image)
    assert not model.use_custom_prompt(name)  # else it must build the prompt
    rows = [
        {**row, "prediction": model.generate(message=dataset.build_prompt(row), dataset=name)} for row in dataset.rows
    ]
    for row in rows:
        del row["image"]
    (Path(work_dir) / f"{model_name}_{dataset.dataset_name}.json").write_text(json.dumps(rows))
