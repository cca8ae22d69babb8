"""The soak test sees a leak, and a few rounds have none."""

import json
import subprocess
import sys

import pytest

ROUNDS = """
import json
from tests.faults.soak import soak
print(json.dumps([soak(0, ["train, tensor, native", "cache"]), soak(0, ["cache"], leak=[])]))
"""


@pytest.mark.slow
def test_a_few_rounds_are_flat_and_a_leak_is_seen():
    done = subprocess.run([sys.executable, "-P", "-c", ROUNDS], capture_output=True, text=True, check=True)
    whole, leaking = json.loads(done.stdout.splitlines()[-1])
    assert whole["flat"] and whole["rounds"] == 9, whole
    assert not leaking["flat"], leaking
