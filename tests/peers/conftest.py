"""Fixtures of the tests beside the real packages of other projects, see `make peers`."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from saefast import open_source

ROOT = Path(__file__).parent.parent.parent
# `make test` passes over them: its environment has none of these packages
PACKAGES = (
    "sae_lens",
    "sparsify",
    "dictionary_learning",
    "llamascopium",
    "neuron_explainer",
    "circuit_tracer",
    "delphi",
    "sae_dashboard",
)
collect_ignore_glob = [] if any(map(find_spec, PACKAGES)) else ["test_*.py"]


@pytest.fixture(scope="session")
def real_rows():
    """[8192, 576] fp32 activations of SmolLM2-135M after block 12, attention sinks dropped, one random order."""
    source = ROOT / "data" / "acts-bench"
    assert source.exists(), f"{source}: run `make peers`, which caches the activations"
    rows = torch.cat([chunk.float() for chunk in open_source(source).rows()])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:8192]]


@pytest.fixture(scope="session")
def x(real_rows):
    """[256, 576], of a norm of about 24."""
    return (real_rows[:256] / real_rows.norm(dim=1).mean() * 24).contiguous()
