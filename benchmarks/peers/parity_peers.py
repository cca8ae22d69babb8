"""The other side of `parity.py`: every named trainer of the peers, run by its own code on the same rows.

    python -m benchmarks.peers.parity_peers OUT data/acts-corpus data/heldout-corpus    in an environment with the peers

dictionary_learning: `trainSAE`, from the repository at 60ec6bf (on PYTHONPATH before PyPI's older 0.1.0). sparsify
1.3.3: `Trainer.fit`, on a language model that looks the rows up. SAELens 6.54.12: `SAETrainer.fit`, evaluated as it
saves. Writes OUT/NAME-SEED.json (held-out FVU, L0, dead share, seconds) and OUT/NAME-SEED.pt (the weights that it
started from, as [d_sae, d_in]). What is there already is not run again.

Two defects are set right, under names of their own: dictionary_learning's JumpReLU takes the step function's
gradient on the activations, which the paper takes on the pre-activations; its Matryoshka divides by the number of
groups twice.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.parity_common import (
    D_SAE,
    DEAD_TOKENS,
    DECAY,
    DL,
    GROUPS,
    RECIPES,
    SEEDS,
    SP,
    SPARSITY_WARMUP,
    STEPS,
    THRESHOLD_RATE,
    WARMUP,
    B,
    Encode,
    K,
    Recipe,
    batch_indices,
    read,
    scale_of,
    score,
)
from benchmarks.peers.peers import stand_ins


class DictionaryLearning:
    """`formula`: with the defects set right."""

    def __init__(self, recipe: Recipe, d_in: int, seed: int) -> None:
        with stand_ins("nnsight", "datasets", "zstandard"):
            from dictionary_learning.trainers import (
                batch_top_k,
                gdm,
                jumprelu,
                matryoshka_batch_top_k,
                standard,
                top_k,
            )
            from dictionary_learning.training import trainSAE

        kind, _, formula = recipe.kind.partition(" ")
        cls: Any = {
            "Standard": standard.StandardTrainer, "TopK": top_k.TopKTrainer, "BatchTopK": batch_top_k.BatchTopKTrainer,
            "JumpReLU": jumprelu.JumpReluTrainer, "Gated": gdm.GatedSAETrainer,
            "Matryoshka": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
        }[kind]  # fmt: skip
        options: dict[str, Any] = {}
        if recipe.with_k:
            options |= {"k": K}
        if kind in ("BatchTopK", "Matryoshka"):
            options |= {"threshold_beta": 1 - THRESHOLD_RATE, "threshold_start_step": SPARSITY_WARMUP}
        if kind == "Matryoshka":
            options["group_fractions"] = [size / D_SAE for size in GROUPS]
            if formula:
                options["group_weights"] = [1.0] * len(GROUPS)
        if recipe.sparsity:
            options["sparsity_warmup_steps"] = SPARSITY_WARMUP
        if kind in ("Standard", "Gated"):
            options["l1_penalty"] = recipe.sparsity
        if kind == "JumpReLU":
            options |= {"sparsity_penalty": recipe.sparsity, "target_l0": float(K)}
            cls = on_pre_acts(cls) if formula else cls
        torch.manual_seed(seed)  # JumpReluTrainer does not
        self.trainer = cls(
            steps=STEPS, activation_dim=d_in, dict_size=D_SAE, layer=0, lm_name="none", lr=recipe.lr, seed=seed,
            warmup_steps=WARMUP, decay_start=STEPS - DECAY, device="cpu", **options,
        )  # fmt: skip
        self.trainer.dead_feature_threshold = DEAD_TOKENS
        self.train, self.count = trainSAE, 0

    def tensors(self) -> dict[str, Tensor]:
        names = {
            "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec",
            "decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag",
        }  # fmt: skip
        found = {names.get(k, k): v for k, v in self.trainer.ae.state_dict().items()}
        return as_ours(found)

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.count, x)
        self.count += 1

    def fit(self, rows: Tensor, order: Iterable[Tensor]) -> None:
        batches = (rows[index] for index in order)
        self.train(batches, [{"trainer": lambda: self.trainer}], STEPS, device="cpu")

    def trained(self) -> tuple[Encode, Encode]:
        return self.trainer.ae.encode, self.trainer.ae.decode


def on_pre_acts(trainer: Any) -> Any:
    """dictionary_learning's JumpReluTrainer, its step function's gradient where the paper has it (2407.14435)."""
    from dictionary_learning.trainers import jumprelu

    class OnPreActs(trainer):
        def loss(self, x: Tensor, step: int, logging: bool = False, **_: object) -> Tensor:
            pre = x @ self.ae.W_enc + self.ae.b_enc
            f = jumprelu.JumpReLUFunction.apply(pre, self.ae.threshold, self.bandwidth)
            squared = (x - self.ae.decode(f)).pow(2).sum(dim=-1).mean()
            l0 = jumprelu.StepFunction.apply(pre, self.ae.threshold, self.bandwidth).sum(dim=-1).mean()
            penalty: Tensor = (l0 / self.target_l0 - 1).pow(2) * self.sparsity_warmup_fn(step)
            return squared + self.sparsity_coefficient * penalty

    return OnPreActs


class Rows(nn.Module):
    """A language model to sparsify's trainer: the token ids are numbers of rows, `lookup` is the module it hooks."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.device, self.dummy_inputs = rows.device, {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.lookup = nn.Embedding.from_pretrained(rows)

    @property
    def base_model(self) -> "Rows":
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lookup(input_ids)


class Sparsify:
    def __init__(self, recipe: Recipe, d_in: int, seed: int) -> None:
        import os

        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from sparsify import trainer
        from sparsify.config import SparseCoderConfig, TrainConfig

        self.folder = tempfile.TemporaryDirectory()
        self.config = TrainConfig(
            SparseCoderConfig(num_latents=D_SAE, k=K), batch_size=1, optimizer=recipe.kind, lr=recipe.lr,
            lr_warmup_steps=WARMUP, dead_feature_threshold=DEAD_TOKENS, hookpoints=["lookup"], init_seeds=[seed],
            save_every=10**9, log_to_wandb=False, save_dir=self.folder.name,
        )  # fmt: skip
        self.cls, self.d_in = trainer.Trainer, d_in
        self.make(torch.zeros(1, d_in), [0] * STEPS)

    def make(self, rows: Tensor, dataset: list[Any]) -> None:
        self.config.hookpoints = ["lookup"]
        self.trainer = self.cls(self.config, dataset, Rows(rows))
        self.coder = self.trainer.saes["lookup"]

    def tensors(self) -> dict[str, Tensor]:
        names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
        return as_ours({names.get(k, k): v for k, v in self.coder.state_dict().items()})

    def step(self, x: Tensor) -> None:
        """As its `fit` does it, without its model."""
        self.coder.set_decoder_norm_to_unit_norm()
        self.coder(x=x, y=x).fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        for each in (*self.trainer.optimizers, *self.trainer.lr_schedulers):
            each.step()
        self.trainer.optimizers[0].zero_grad()

    def fit(self, rows: Tensor, order: Iterable[Tensor]) -> None:
        self.make(rows, [{"input_ids": index} for index in order])
        self.trainer.fit()
        if self.config.optimizer == "signum":
            self.trainer.optimizers[0].eval()  # as it saves

    def trained(self) -> tuple[Encode, Encode]:
        def encode(x: Tensor) -> Tensor:
            out = self.coder.encode(x)
            return torch.zeros(len(x), D_SAE).scatter_(1, out.top_indices, out.top_acts)

        return encode, lambda acts: acts @ self.coder.W_dec + self.coder.b_dec


class SAELens:
    def __init__(self, recipe: Recipe, d_in: int, seed: int) -> None:
        import sae_lens as sl
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        config = getattr(sl, f"{recipe.kind}TrainingSAEConfig")
        options: dict[str, Any] = {"k": K}
        if recipe.sparsity:
            norm = {"JumpReLU": "l0", "Standard": "l1"}[recipe.kind]
            options = {f"{norm}_coefficient": recipe.sparsity, f"{norm}_warm_up_steps": SPARSITY_WARMUP}
        torch.manual_seed(seed)
        self.sae = getattr(sl, f"{recipe.kind}TrainingSAE")(config(d_in=d_in, d_sae=D_SAE, **options))
        settings = SAETrainerConfig(
            STEPS * B, B, lr=recipe.lr, lr_end=recipe.lr, lr_warm_up_steps=WARMUP, lr_decay_steps=DECAY,
            dead_feature_window=DEAD_TOKENS // B,
        )  # fmt: skip
        self.trainer = SAETrainer(settings, self.sae, iter(()))

    def tensors(self) -> dict[str, Tensor]:
        return as_ours(self.sae.state_dict())

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def fit(self, rows: Tensor, order: Iterable[Tensor]) -> None:
        self.trainer.data_provider = (rows[index] for index in order)
        self.trainer.fit()

    def trained(self) -> tuple[Encode, Encode]:
        from sae_lens import SAE

        with tempfile.TemporaryDirectory() as folder:
            self.sae.save_inference_model(folder)
            sae = SAE.load_from_disk(folder, device="cpu")
        return sae.encode, sae.decode


def as_ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, the matrices as [d_sae, d_in]."""
    return {
        name: (value if value.ndim < 2 or len(value) == D_SAE else value.T).detach().clone().contiguous()
        for name, value in tensors.items()
    }


def make(recipe: Recipe, d_in: int, seed: int) -> Any:
    return {DL: DictionaryLearning, SP: Sparsify}.get(recipe.library, SAELens)(recipe, d_in, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("source")
    parser.add_argument("heldout")
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows, heldout = read(args.source), read(args.heldout)
    for seed in args.seeds:
        for name in args.only:
            path = args.out / f"{name.replace(' ', '-')}-{seed}.json"
            if path.exists():
                continue
            recipe = RECIPES[name]
            scale = scale_of(recipe.units, rows)
            scaled = rows * scale
            peer = make(recipe, rows.shape[1], seed)
            torch.save(peer.tensors(), path.with_suffix(".pt"))
            start = time.perf_counter()
            peer.fit(scaled, batch_indices(seed, len(rows)))
            seconds = time.perf_counter() - start
            run = {"name": name, "seed": seed, "lr": recipe.lr, "rows": len(rows), "scale": scale}
            run |= score(*peer.trained(), heldout * scale) | {"seconds_per_step": seconds / STEPS}
            path.write_text(json.dumps(run) + "\n")
            print(json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
