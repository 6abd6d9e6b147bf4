"""Execute the examples of docs/serving.md: its openai lines, its Python, its load balancer's configuration."""

import re
import shutil
import socket
import subprocess
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

import openai
import pytest

from llava_uhd.serving import cli
from llava_uhd.serving.engine import EngineOptions
from llava_uhd.serving.generation import Sampling
from tests.serving.running import Running, as_openai, until
from tests.serving.test_engine import CONVERSATIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
README = (ROOT / "README.md").read_text()
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_lines_with_openai_run_as_they_stand(loaded):
    code, _ = blocks("python")
    assert f"```py\n{code}```" in README
    image = (ROOT / "examples" / "receipt.png").read_bytes()
    with Running(loaded, EngineOptions(batch_size=1, max_new_tokens=6)) as running, redirect_stdout(StringIO()) as out:
        code = code.replace('"tiny"', '"small"').replace("http://127.0.0.1:8000", running.url)
        exec(code.replace("examples/", f"{ROOT}/examples/"), {})
    from llava_uhd.generation.prompt import question_message
    from llava_uhd.serving.engine import Engine

    with Engine(*loaded, EngineOptions(batch_size=1)) as engine:
        expected = engine.submit(
            [question_message([image], "What is the total?")], Sampling(max_new_tokens=6)
        ).result()
    assert out.getvalue().strip() == expected.text


def test_the_options_and_defaults_are_those_of_the_command():
    import inspect

    defaults = {name: value.default for name, value in inspect.signature(cli.serve).parameters.items()}
    rows = re.findall(r"^\| `--([a-z-]+)`(?:, `--([a-z-]+)`)? [^|]*\| ([^|]*) \|", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 7
    for first, second, shown in rows:
        for option in filter(None, (first, second)):
            assert option.replace("-", "_") in defaults
        default = defaults[first.replace("-", "_")]
        assert shown.startswith("none" if default is None else f"{default:g}")


def test_every_limit_stands_on_its_page():
    import inspect

    page = (ROOT / "docs" / "limits.md").read_text()
    parameters = inspect.signature(cli.serve).parameters
    named = {name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)", page.partition("## What is promised")[0])}
    assert named <= set(parameters)
    limits = {name for name in parameters if name.startswith("max_") or name.endswith(("_timeout", "deadline"))}
    assert limits - {"max_new_tokens", "max_waiting"} <= named  # the latter is a former name
    for option, number in re.findall(r"^\|[^|]*\| `--([a-z-]+)` \| ([0-9,.]+)", page, flags=re.MULTILINE):
        default = parameters[option.replace("-", "_")].default
        if default is not None:  # pixels are shown in millions
            assert float(number.replace(",", "")) in (default, default // 10**6), option


@pytest.mark.skipif(HAPROXY is None, reason="needs HAProxy, such as Debian's package haproxy")
def test_two_replicas_behind_the_load_balancer(loaded, tmp_path):
    from copy import deepcopy

    (configuration,) = blocks("haproxy")
    with ExitStack() as stack:
        model, processor = loaded
        models = [model, deepcopy(model)]  # a replica is a process of its own, with a model of its own
        replicas = [
            stack.enter_context(Running((each, processor), EngineOptions(batch_size=2, max_new_tokens=6)))
            for each in models
        ]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for shown, actual in (("8000", port), ("8001", replicas[0].port), ("8002", replicas[1].port)):
            configuration = configuration.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{actual}")
        (tmp_path / "haproxy.cfg").write_text(configuration)
        balancer = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(tmp_path / "haproxy.cfg")])
        stack.callback(balancer.wait)
        stack.callback(balancer.terminate)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

        def ask(**options):
            return client.chat.completions.create(model="small", messages=as_openai(CONVERSATIONS[0]), **options)

        def is_up() -> bool:
            try:
                return bool(client.models.list().data)
            except openai.APIError:
                return False

        until(is_up)
        expected = ask().choices[0].message.content
        assert expected == "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True))
        finished = [replica.engine.stats().finished for replica in replicas]
        assert sorted(finished) == [0, 2]  # a client stays with its replica
        used = finished.index(2)
        replicas[used].server.should_exit = True
        replicas[used].thread.join()
        until(is_up)  # once the health checks have noticed
        assert ask().choices[0].message.content == expected
        assert replicas[1 - used].engine.stats().finished == 1
