"""Documents in requests: pages of PDF and TIFF files as images."""

import base64
import io
import json
import subprocess
import sys
import time

import pytest

from llava_uhd.serving.documents import read_pages
from llava_uhd.serving.engine import EngineOptions
from llava_uhd.serving.generation import DeadlineExceeded
from llava_uhd.serving.limits import Limits
from tests.documents import page_images, write_encrypted_pdf, write_pdf, write_tiff
from tests.serving.conftest import png
from tests.serving.running import Running, ask_raw, file_part, image_part, with_parts


def test_the_process_that_renders_documents_imports_no_torch():
    script = "import sys, llava_uhd.serving.documents; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_pages_of_a_document_are_images(running, tmp_path):
    def ask(*parts) -> dict:
        status, _, answer = running.request("POST", "/v1/chat/completions", json.dumps(with_parts(*parts)))
        assert status == 200, answer
        return json.loads(answer)

    pdf, tiff = write_pdf(tmp_path / "a.pdf", 3).read_bytes(), write_tiff(tmp_path / "a.tif", 2).read_bytes()
    frames = [file.getvalue() for page in page_images(2) for file in [io.BytesIO()] if page.save(file, "PNG") is None]
    separate = ask(*[image_part(frame) for frame in frames])
    together = ask(file_part(tiff, "scan.tif"))
    assert together["usage"]["prompt_tokens_details"] == separate["usage"]["prompt_tokens_details"]
    assert together["choices"][0]["message"] == separate["choices"][0]["message"]
    assert ask(file_part(pdf))["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert ask(file_part(frames[0], None))["usage"] == ask(image_part(frames[0]))["usage"]


def test_five_pages_of_a_pdf_and_three_of_a_tiff(loaded, tmp_path):
    pdf, tiff = write_pdf(tmp_path / "a.pdf", 5).read_bytes(), write_tiff(tmp_path / "a.tif", 3).read_bytes()
    options = EngineOptions(batch_size=1, max_new_tokens=4)
    with Running(loaded, options, limits=Limits(images=8)) as running:

        def image_tokens(*parts) -> int:
            body = with_parts(*parts) | {"mm_processor_kwargs": {"max_slices": 1}}
            status, _, answer = running.request("POST", "/v1/chat/completions", json.dumps(body))
            assert status == 200, answer
            return json.loads(answer)["usage"]["prompt_tokens_details"]["image_tokens"]

        of_pdf, of_tiff = image_tokens(file_part(pdf)), image_tokens(file_part(tiff, "scan.tif"))
        assert 0 < of_pdf and of_pdf * 3 == of_tiff * 5
        assert image_tokens(file_part(pdf), file_part(tiff, "scan.tif")) == of_pdf + of_tiff
        for content, expected in ((pdf, of_pdf), (tiff, of_tiff)):  # whatever the part is called
            assert image_tokens(image_part(content)) == expected
            url = f"data:;base64,{base64.b64encode(content).decode()}"
            assert image_tokens({"type": "image_url", "image_url": url}) == expected


def test_documents_that_cannot_be_read_are_refused(running, tmp_path):
    pdf = write_pdf(tmp_path / "a.pdf", 4).read_bytes()
    encrypted = write_encrypted_pdf(tmp_path / "b.pdf").read_bytes()
    tiff = write_tiff(tmp_path / "a.tif", 3).read_bytes()
    for parts, said in [
        ([file_part(pdf)], "report.pdf has 4 pages; at most 3"),
        ([image_part(png(30, 30)), file_part(tiff, "s.tif")], "more than 2 pages"),
        ([file_part(encrypted)], "report.pdf is encrypted"),
        ([file_part(pdf[:200])], "report.pdf is damaged"),
        ([{"type": "file", "file": {"file_id": "file-1"}}], "messages.0.content.0.file.file_data: it is missing"),
        ([file_part(b"no document")], "not an image"),
    ]:
        status, error, _ = ask_raw(running, with_parts(*parts))
        assert status == 400 and said in error["message"], error


def test_a_renderer_is_killed_when_its_time_is_over(tmp_path):
    pdf = write_pdf(tmp_path / "a.pdf", 4).read_bytes()
    with pytest.raises(ValueError, match="more than 0.01 s to render"):
        read_pages(pdf, "a.pdf", 9, 10**5, 10**7, 0.01, time.monotonic() + 60)
    with pytest.raises(DeadlineExceeded):
        read_pages(pdf, "a.pdf", 9, 10**5, 10**7, 60, time.monotonic() + 0.01)
