"""The soak test sees a leak, and a few rounds have none."""

import pytest

from tests.faults.scenarios import in_child
from tests.faults.soak import soak


@pytest.mark.slow
def test_a_few_rounds_are_flat_and_a_leak_is_seen():
    def rounds():
        found = soak(0, ["train, tensor, native", "cache"])
        assert found["flat"] and found["rounds"] == 9, found
        assert not soak(0, ["cache"], leak=[])["flat"]

    assert in_child(rounds) == 0
