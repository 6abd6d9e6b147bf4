"""The adapters for VLMEvalKit and lmms-eval: end to end on a mini data set, each in a process of its own.

Neither package installs beside a CPU build of PyTorch (both want torchvision), so stand-ins with their interface take
their place in `interfaces/`; with the packages at hand the same tests run on them.
"""

import base64
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llava_uhd.evaluation.readers import LETTER_ANSWER
from llava_uhd.generation.batch import answer
from llava_uhd.generation.prompt import prepare, question_message
from llava_uhd.loading import load
from tests.conftest import random_image

INTERFACES = Path(__file__).parent / "interfaces"


def run_python(code_or_module: list[str], stand_in: str, **environment: str) -> str:
    """Runs Python with a stand-in's folder on the path where the package itself is not there."""
    paths = [str(Path.cwd())] if importlib.util.find_spec(stand_in) else [str(Path.cwd()), str(INTERFACES)]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *code_or_module], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(folder: Path, image, question: str, max_new_tokens: int, num_beams: int) -> str:
    """The answer that the model gives by itself."""
    model, processor = load(str(folder), "cpu")
    model.generation_config.num_beams = num_beams
    inputs = prepare(model, processor, [question_message([image], question)], max_new_tokens)
    return answer(model, processor, inputs, max_new_tokens).strip()


def test_vlmevalkit(model_folder, tmp_path):
    image = random_image(90, 60)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    row = {"index": "0", "image": base64.b64encode(encoded.getvalue()).decode(), "question": "What is it?"}
    row |= {"A": "red", "B": "blue", "answer": "A"}
    with (tmp_path / "MiniChoice.tsv").open("w") as file:
        writer = csv.DictWriter(file, row, delimiter="\t")
        writer.writeheader()
        writer.writerow(row)
    code = (
        "import sys; from pathlib import Path; from llava_uhd.evaluation.adapters import vlmevalkit as v;"
        "from dataclasses import replace; options = replace(v.OPTIONS, max_side=None, max_new_tokens=4);"
        f"generator = v.load_generator({str(model_folder)!r}, 'cpu', 'auto', options);"
        f"print(v.evaluate(generator, 'MiniChoice', Path({str(tmp_path / 'out')!r}), 'small'))"
    )
    printed = run_python(["-c", code], "vlmeval", LMUData=str(tmp_path))
    assert "Overall" in printed
    question = "Question: What is it?\nOptions:\nA. red\nB. blue" + LETTER_ANSWER
    (prediction,) = json.loads((tmp_path / "out" / "small_MiniChoice.json").read_text())
    assert prediction["prediction"] == alone(model_folder, image, question, 4, num_beams=3)


def test_vlmevalkit_is_named_where_it_is_missing():
    if importlib.util.find_spec("vlmeval"):
        pytest.skip("VLMEvalKit is installed")
    module = ["-m", "llava_uhd.evaluation.adapters.vlmevalkit", "OCRBench", "--out", "out"]
    done = subprocess.run([sys.executable, *module], capture_output=True, text=True)
    assert done.returncode != 0 and "VLMEvalKit cannot be imported" in done.stderr


def test_lmms_eval(model_folder):
    code = f"""
import json
from types import SimpleNamespace
from tests.conftest import random_image
from llava_uhd.evaluation.adapters.lmms_eval_plugin import manifest
module, _, name = manifest().simple_class_path.rpartition(".")
adapter = getattr(__import__(module, fromlist=[name]), name)
model = adapter(pretrained={str(model_folder)!r}, device="cpu", batch_size=2)
pair = [random_image(90, 60), random_image(40, 80)]
model.task_dict = {{"task": {{"test": [[pair[0]], None, [pair[1]], pair, pair, ["a sound", b"x"]]}}}}
options = {{"max_new_tokens": 4, "until": ["\\n\\n"]}}
visual = lambda doc: doc
texts = ["<image> What is it?", "Who?", "<image> Which?", "First <image> then <image>?", "Both?"]
requests = [SimpleNamespace(args=(text, options, visual, i, "task", "test")) for i, text in enumerate(texts)]
answers = model.generate_until(requests)
try:
    model.generate_until([SimpleNamespace(args=("?", options, visual, 5, "task", "test"))])
except ValueError as error:
    rejection = str(error)
print(json.dumps([manifest().model_id, answers, len(model.cache_hook.added), str(model.device), rejection]))
"""
    name, answers, cached, device, rejection = json.loads(run_python(["-c", code], "lmms_eval").splitlines()[-1])
    assert (name, cached, device) == ("llava_uhd", 5, "cpu")
    assert rejection == "this model takes images; the task gives a bytes"
    images = [{"type": "image", "image": random_image(*size)} for size in ((90, 60), (40, 80))]
    text = [{"type": "text", "text": part} for part in ("First ", " then ", "?", "Both?")]
    for index, content in (
        (3, [text[0], images[0], text[1], images[1], text[2]]),
        (4, [*images, text[3]]),
    ):
        model, processor = load(str(model_folder), "cpu")
        inputs = prepare(model, processor, [{"role": "user", "content": content}], 4)
        assert answers[index] == answer(model, processor, inputs, 4).strip()
    assert answers[0] == alone(model_folder, random_image(90, 60), "What is it?", 4, num_beams=1)
    assert answers[2] == alone(model_folder, random_image(40, 80), "Which?", 4, num_beams=1)


def test_lmms_eval_finds_the_entry_point():
    (entry,) = [point for point in entry_points(group="lmms_eval.models") if point.name == "llava_uhd"]
    assert entry.value == "llava_uhd.evaluation.adapters.lmms_eval_plugin:manifest"
