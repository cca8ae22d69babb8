"""The scorers of other projects, imported without the gigabytes that only their explainers and searches by embeddings use."""

import importlib
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

HEAVY = ("faiss", "sentence_transformers", "tiktoken", "vllm", "vllm.distributed")
HEAVY += ("vllm.distributed.parallel_state", "vllm.inputs")


def openai_scorers():
    """Modules of automated-interpretability under their last names."""
    if find_spec("neuron_explainer") is None:
        pytest.skip("automated-interpretability is not installed")
    names = ("activations.activations", "explanations.explanations")
    return _imported(
        "neuron_explainer", names + ("explanations.calibrated_simulator", "explanations.scoring")
    )


def delphi_scorers():
    """Modules of eai-delphi under their last names."""
    if find_spec("delphi") is None or find_spec("delphi.latents") is None:
        pytest.skip("eai-delphi is not installed")
    importlib.import_module("sparsify")  # datasets, below it, must not find the faiss that stands in
    names = ("latents.latents", "clients.client", "scorers", "log.result_analysis")
    names += ("scorers.embedding.example_embedding",)
    simulation = "scorers.simulator.simulation"
    return _imported("delphi", (*names, f"{simulation}.data_models", f"{simulation}.scoring"))


def _imported(package, modules):
    with pytest.MonkeyPatch.context() as patch:
        for name in HEAVY:
            if name not in sys.modules:
                patch.setitem(sys.modules, name, MagicMock(__spec__=None))
        found = {name: importlib.import_module(f"{package}.{name}") for name in modules}
    return SimpleNamespace(**{name.split(".")[-1]: module for name, module in found.items()})
