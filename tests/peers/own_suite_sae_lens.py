"""A pytest plugin: SAELens's own tests of its trainer and runners with `saefast.adapters.sae_lens` in place.

    cp -r SAELENS/tests SUITE/ && cd SUITE      (beside its own package, that one would be imported)
    PYTHONPATH=HERE/tests/peers:$PYTHONPATH python -m pytest -p own_suite_sae_lens --saefast ./tests/saes \\
        ./tests/training/test_{sae_trainer,optim,activation_scaler}.py ./tests/test_llm_sae_training_runner.py

Without --saefast they run on the stock trainer. What they would download is replaced: their language model by one of its
sizes with random weights and SmolLM2's tokenizer (data/smollm2-135m), their dataset by the texts of data/corpus.jsonl.
They read every field of what a step returns, so `full_output` is True.
"""

import json
from itertools import islice
from pathlib import Path

import sae_lens
import torch
from datasets import Dataset
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer

DATA = Path(__file__).parent.parent.parent / "data"


def pytest_addoption(parser):
    parser.addoption("--saefast", action="store_true")


def pytest_configure(config):
    sae_lens.training.activations_store.load_dataset = load_dataset
    HookedTransformer.from_pretrained = from_pretrained
    if config.getoption("--saefast"):
        from saefast.adapters.sae_lens import SAETrainer, patch

        SAETrainer.full_output = True
        patch()


def load_dataset(*args, **kwargs):
    with open(DATA / "corpus.jsonl") as lines:
        return Dataset.from_list([{"text": json.loads(line)["text"]} for line in islice(lines, 300)])


def from_pretrained(model_name, *args, **kwargs):
    """tiny-stories-1M."""
    tokenizer = AutoTokenizer.from_pretrained(str(DATA / "smollm2-135m"))
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=8,
        d_model=64,
        n_ctx=512,
        d_head=4,
        n_heads=16,
        d_mlp=256,
        act_fn="gelu_new",
        d_vocab=len(tokenizer),
        model_name=model_name,
        device="cpu",
    )
    return HookedTransformer(config, tokenizer=tokenizer)
