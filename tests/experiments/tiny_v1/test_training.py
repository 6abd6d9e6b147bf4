"""The whole training in miniature, and the answers' loss."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.tiny_v1 import decoder, join, vision
from experiments.tiny_v1.__main__ import STAGES, main
from experiments.tiny_v1.decoder import SymbolReader
from experiments.tiny_v1.folder import save_folder
from experiments.tiny_v1.join import assemble
from experiments.tiny_v1.losses import answer_loss
from experiments.tiny_v1.samples import IGNORED
from experiments.tiny_v1.vision import build_model
from llava_uhd.evaluation.pipeline import RunOptions, evaluate_task
from llava_uhd.evaluation.tasks import TASKS
from llava_uhd.loading import BUILT_IN, load
from llava_uhd.model.configuration_llava_uhd import LlavaUhdConfig
from llava_uhd.model.processing_llava_uhd import LlavaUhdProcessor
from llava_uhd.training.assembly import read_upsampler


def test_an_answer_is_right_if_all_its_tokens_are():
    labels = torch.tensor([[IGNORED, IGNORED, 1, 2, IGNORED, 3], [IGNORED, 2, 2, IGNORED, IGNORED, 1]])
    predictions = torch.tensor([[0, 1, 2, 0, 3, 0], [2, 1, 0, 0, 1, 0]])
    head = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
    loss, right, answers = answer_loss(100.0 * torch.eye(4)[predictions], labels, head)
    assert (right, answers) == (3, 4)
    assert loss.item() == pytest.approx(100 / 6, rel=1e-5)
    # The wrong one is one of six tokens; with three times the weight of the others, three of eight.
    weights = torch.ones(labels.shape)
    weights[1, 2] = 3.0
    loss, right, answers = answer_loss(100.0 * torch.eye(4)[predictions], labels, head, weights)
    assert (right, answers) == (3, 4)
    assert loss.item() == pytest.approx(300 / 8, rel=1e-5)


@torch.no_grad()
def test_joining_folds_the_codes_matrix_into_the_projector():
    torch.manual_seed(0)
    seeing, reader = build_model(1).model.eval(), SymbolReader()
    joined = assemble(seeing, reader).eval()
    patches = torch.randn(2, 64, 3 * 14 * 14)
    expected = reader.code_map(seeing.project_views(patches, (8, 8)))
    assert torch.allclose(joined.model.project_views(patches, (8, 8)), expected, atol=1e-5)


def test_the_saved_folder_is_like_the_built_in_one_and_carries_no_code(tmp_path):
    save_folder(build_model(0), tmp_path / "model")
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names == {
        file.name
        for file in BUILT_IN["tiny"].iterdir()
        if not file.name.startswith(("synthdoc", "train", "abilities", "confidence"))
    }
    for name in names - {"model.safetensors"}:
        text = (tmp_path / "model" / name).read_text()
        assert "auto_map" not in text
        saved, shipped = text, (BUILT_IN["tiny"] / name).read_text()
        if name == "tokenizer.json":
            # The shipped tokenizer is older than the normalizer that processors add; loading adds it.
            saved, shipped = ({**json.loads(each), "normalizer": None} for each in (saved, shipped))
        if name == "processor_config.json":
            saved, shipped = (
                LlavaUhdProcessor.from_pretrained(folder).to_dict()
                for folder in (tmp_path / "model", BUILT_IN["tiny"])
            )
        if name == "generation_config.json":
            saved, shipped = ({**json.loads(each), "transformers_version": ""} for each in (saved, shipped))
        if name == "config.json":
            # Options that came later have their defaults there.
            saved, shipped = (
                LlavaUhdConfig.from_pretrained(folder) for folder in (tmp_path / "model", BUILT_IN["tiny"])
            )
            saved, shipped = ({**each.to_dict(), "_name_or_path": ""} for each in (saved, shipped))
        assert saved == shipped, name
    model, _ = load(str(tmp_path / "model"), device="cpu")
    assert torch.equal(model.lm_head.weight, build_model(0).lm_head.weight)


@pytest.mark.slow
def test_the_whole_training_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "VIEWS", 8)
    phases = {name: replace(phase, batch_size=2) for name, phase in decoder.PHASES.items()}
    parts = {name: replace(part, batch_size=2) for name, part in join.PARTS.items()}
    monkeypatch.setattr(decoder, "PHASES", phases)
    monkeypatch.setattr(join, "PARTS", parts)
    main(["--out", str(tmp_path), "--device", "cpu", "--shorten", "10000"])
    stages = {json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").read_text().splitlines()}
    assert stages == set(STAGES) - {"bootstrap", "documents", "save", "finish"}
    kernels = {name: value for name, value in read_upsampler(str(tmp_path / "upsampler")).items() if name[:2] == "up"}
    # The last stage computes in bfloat16, and keeps in it what does not learn.
    for folder, dtype in (("model", torch.float32), ("tiny", torch.bfloat16)):
        of_folder = load(str(tmp_path / folder), device="cpu")[0].model.multi_modal_projector.upsampler.state_dict()
        assert kernels and all(torch.equal(of_folder[name], kernel.to(dtype)) for name, kernel in kernels.items())
    for folder in ("bootstrap", "model", "tiny"):
        model, processor = load(str(tmp_path / folder), device="cpu")
        results = tmp_path / folder / "synthdoc"
        result = evaluate_task(TASKS["synthdoc"], model, processor, None, results, RunOptions(limit=2), "model")
        assert [row["category"] for row in result["rows"]] == ["receipt", "form"]
