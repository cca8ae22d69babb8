"""Whether a change of the code changes the numbers: short runs of every architecture, each as one SHA-256 of all weights and
moments at its end.

    python -m tests.gates.same_bits > before.json          on the commit before
    python -m tests.gates.same_bits --compare before.json  on the commit after, on the same machine

Nothing but the public names is used, so that the same file runs on both. Bits differ between processors and numbers of threads,
so no hash is committed.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

import saefast

BACKENDS = ("reference", "native")
D_IN, D_SAE, K, BATCH, STEPS = 48, 768, 6, 256, 24
# name -> what differs from a TopK SAE, and from its recipe
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk": ({}, {}),
    "topk, clipped": ({}, {"grad_clip": 0.02}),
    "topk, free decoder, selected by norm": (
        {"scale_by_norm": True},
        {"unit_norm": False, "init_decoder_norm": 0.5},
    ),
    "topk, multi": ({}, {"multi_topk": 4}),
    "topk, AuxK of SAELens": ({}, {"auxk_scale": "loss", "auxk_relu": False, "count_before_auxk": True}),
    "topk, AuxK in the error": ({}, {"auxk_scale": "loss", "auxk_detached": False}),
    "topk, AuxK in pieces": ({}, {"micro_batch_size": 100}),
    "topk, rescored": ({}, {"rescore": 8, "compute_dtype": "bf16", "backend": "reference"}),
    "topk, annealed k, mse": ({}, {"k_start": 12, "k_anneal_fraction": 0.5, "loss": "mse"}),
    "topk, mean mse, normalised, EMA": ({}, {"loss": "mse_mean", "normalize_input": True, "ema_decay": 0.9}),
    "topk, resampled": ({}, {"resample_steps": (12,), "resample_tokens": 512}),
    "topk, adamw": ({}, {"optimizer": "adamw", "weight_decay": 0.01}),
    "topk, muon": ({}, {"optimizer": "muon"}),
    "topk, rates of parameters": ({}, {"lr_W_enc": 0.5, "lr_b_enc": 2.0, "lr_W_dec": 0.3, "lr_b_dec": 0.0}),
    "topk, split weights, int8 moments": (
        {},
        {"param_dtype": "split", "state_dtype": "int8", "backend": "reference"},
    ),
    "topk, bf16": ({}, {"param_dtype": "bf16", "state_dtype": "bf16", "backend": "reference"}),
    "topk, no bias of the input": ({"pre_bias": False}, {}),
    "batch_topk": ({"activation": "batch_topk"}, {}),
    "batch_topk, free decoder": (
        {"activation": "batch_topk"},
        {"unit_norm": False, "init_decoder_norm": 0.3},
    ),
    "matryoshka": ({"activation": "matryoshka"}, {}),
    "matryoshka, weighted": (
        {"activation": "matryoshka", "group_sizes": (100, 300, 768)},
        {"group_weights": (1.0, 0.5, 2.0)},
    ),
    "group_max": ({"activation": "group_max"}, {}),
    "relu": ({"activation": "relu", "k": None}, {"penalty": "l1", "sparsity_coefficient": 0.02}),
    "relu, by norm": (
        {"activation": "relu", "k": None},
        {"penalty": "l1", "sparsity_coefficient": 0.02, "norm_weighted": True, "unit_norm": False},
    ),
    "relu, lp": (
        {"activation": "relu", "k": None},
        {"penalty": "lp", "sparsity_coefficient": 0.02, "p_end": 0.5, "p_anneal_from": 0.2},
    ),
    "jumprelu": ({"activation": "jumprelu", "k": None}, {"penalty": "l0", "sparsity_coefficient": 0.02}),
    "jumprelu, tanh": (
        {"activation": "jumprelu", "k": None},
        {
            "penalty": "tanh",
            "sparsity_coefficient": 0.05,
            "norm_weighted": True,
            "unit_norm": False,
            "straight_through": "all",
            "log_threshold": True,
            "preact": "all",
            "preact_coefficient": 1e-3,
        },
    ),
    "jumprelu, target": (
        {"activation": "jumprelu", "k": None, "init_threshold": 0.5},
        {
            "penalty": "target_l0",
            "target_l0": 20.0,
            "sparsity_coefficient": 0.02,
            "straight_through": "acts",
            "bandwidth": 0.1,
        },
    ),
    "jumprelu, by norm": (
        {"activation": "jumprelu", "k": None, "scale_by_norm": True, "init_threshold": 0.5},
        {
            "penalty": "l0",
            "unit_norm": False,
            "sparsity_coefficient": 0.02,
            "straight_through": "positive",
            "preact": "dead",
            "preact_coefficient": 1e-3,
        },
    ),
    "gated": ({"activation": "gated", "k": None}, {"penalty": "l1", "sparsity_coefficient": 0.02}),
    "transcoder": ({"d_out": 32, "pre_bias": False}, {}),
    "transcoder, skip": ({"d_out": 32, "pre_bias": False, "skip": True}, {"normalize_input": True}),
    "crosscoder": ({"layers": 3, "activation": "batch_topk"}, {"norm_weighted": False, "unit_norm": False}),
}


def rows(width: int) -> torch.Tensor:
    """[n, width]: sparse mixtures of directions, as an SAE expects, with a mean."""
    generator = torch.Generator().manual_seed(7)
    n = BATCH * STEPS
    directions = torch.randn(3 * width, width, generator=generator)
    active = (torch.rand(n, 3 * width, generator=generator) < 0.03).float()
    strength = torch.rand(n, 3 * width, generator=generator) * active
    return strength @ directions + 0.1 * torch.randn(n, width, generator=generator) + 0.5


def digest(case: str, backend: str) -> str:
    of_sae, of_run = CASES[case]
    config = saefast.SAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, "k": K, **of_sae})
    train = {"backend": backend, "lr": 3e-3, "dead_feature_threshold": 1500, "auxk_alpha": 1 / 32} | of_run
    torch.manual_seed(0)
    sae = saefast.SAE(config)
    trainer = saefast.Trainer(
        sae, saefast.TrainConfig(batch_size=BATCH, total_tokens=BATCH * STEPS, seed=3, **train)
    )
    trainer.fit(rows(config.row_width))
    found = hashlib.sha256()
    for name, tensor in sorted((trainer.tensors() | trainer.exported()).items()):
        found.update(name.encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", type=Path, help="the output of an earlier call")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    os.environ["TQDM_DISABLE"] = "1"
    found = {}
    for case, (_, of_run) in CASES.items():
        for backend in (of_run["backend"],) if "backend" in of_run else BACKENDS:
            try:
                found[f"{case} / {backend}"] = digest(case, backend)
            except saefast.InputError as error:  # part of what is compared, too
                found[f"{case} / {backend}"] = str(error)
    print(json.dumps(found, indent=1))
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        changed = [name for name in before | found if before.get(name) != found.get(name)]
        print(f"{len(found) - len(changed)} of {len(found)} the same", *changed, sep="\n", file=sys.stderr)
        sys.exit(bool(changed))


if __name__ == "__main__":
    main()
