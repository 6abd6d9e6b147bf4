"""The load script itself, for a few seconds, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_nothing_is_lost_or_mixed_up_under_load(loaded, tmp_path):
    for part in loaded:
        part.save_pretrained(tmp_path)
    options = "--clients 6 --seconds 8 --questions 8 --max-tokens 6 --malformed 0.2 --hang-ups 0.2".split()
    command = [sys.executable, str(ROOT / "benchmarks" / "serving_load.py"), "--model", str(tmp_path), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads(result.stdout)
    assert record["num_wrong"] == 0 and record["hung_up"] > 0 and record["exit_code"] == 0
    assert set(record["statuses"]) <= {"200", "400", "404", "429"} and record["statuses"]["400"] > 0
    assert record["answers"] > 8 and 0 < record["p50_seconds"] <= record["p99_seconds"]
    assert record["memory_mib"]["peak"] >= record["memory_mib"]["warm"] > 0
