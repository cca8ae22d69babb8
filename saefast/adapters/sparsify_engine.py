"""The engine behind `saefast.adapters.sparsify.Trainer`: one for each of its sparse coders."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor

from saefast.adapters.linked import Linked, during, replace
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.reference import total_variance as variance_of

NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "W_skip": "W_skip",
}
ACTIVATIONS = {"topk": "topk", "groupmax": "group_max"}
MULTI_TOPK, MULTI_TOPK_WEIGHT = 4, 1 / 8  # sparsify's


class Engine(Linked):
    """Trains one `SparseCoder` in place. It stands in for `SparseCoder.forward` while sparsify's `fit` runs: the same
    arguments, and of the result what `fit` reads. The backward pass is done when it returns.

    Where the optimizer is torch's Adam and every batch is a step, the step is the engine's, with its fused Adam, whose
    moments are the optimizer's; no parameter has a `.grad`, so the optimizer itself does nothing. Else the gradients go
    to `.grad`, where they add up for whichever optimizer there is.

    Args:
        trainer: sparsify's. name: of the coder in `trainer.saes`. backend, compute_dtype: see `TrainConfig`.
    """

    def __init__(self, trainer: Any, name: str, backend: str, compute_dtype: str) -> None:
        self.stock, self.name, self.coder = trainer, name, trainer.saes[name]
        cfg, coder, optimizer = trainer.cfg, self.coder, trainer.optimizers[0]
        self.acc_steps = cfg.grad_acc_steps * cfg.micro_acc_steps
        self.group = next(
            group for group in optimizer.param_groups if any(p is coder.W_dec for p in group["params"])
        )
        self.fused = self.acc_steps == 1 and is_plain_adam(optimizer, self.group)
        transcode = coder.cfg.transcode
        unit_norm = coder.cfg.normalize_decoder and not transcode
        if unit_norm:  # of files it may not be
            coder.set_decoder_norm_to_unit_norm()
        sae_config = SAEConfig(
            coder.d_in,
            coder.num_latents,
            activation=ACTIVATIONS[coder.cfg.activation],  # type: ignore[arg-type]
            k=trainer.final_k,
            d_out=coder.d_in if transcode else None,
            pre_bias=not transcode,
            skip=coder.W_skip is not None,
        )
        config = TrainConfig(
            total_tokens=1,
            optimizer="adam" if self.fused else "signum",  # any other makes the gradients exist
            betas=self.group["betas"] if self.fused else (0.9, 0.999),
            eps=self.group["eps"] if self.fused else 1e-8,
            unit_norm=unit_norm,
            normalize_input=False,
            auxk_alpha=cfg.auxk_alpha,
            auxk_scale="loss",
            auxk_ramp=True,
            dead_feature_threshold=cfg.dead_feature_threshold + 1,  # sparsify: more tokens than that
            multi_topk=MULTI_TOPK if coder.cfg.multi_topk else 0,
            multi_topk_weight=MULTI_TOPK_WEIGHT,
            backend=backend,  # type: ignore[arg-type]
            compute_dtype=compute_dtype,  # type: ignore[arg-type]
            cuda_graph=not (cfg.exclude_tokens or cfg.k_decay_steps),  # with them steps differ in shape
        )
        super().__init__(coder, NAMES, sae_config, config, optimizer if self.fused else None)

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        dead_mask: Tensor | None,
        total_variance: Tensor,
    ) -> ForwardOutput:
        """x [B, d_in], y [B, d_in] (x itself, or a transcoder's target) of any floating dtype; any B.

        total_variance: [] of the whole batch, of which this is a chunk where `micro_acc_steps` is not 1. dead_mask is
        found again from the counts.

        Returns:
            Of the fields only the losses are set, and for `latent_indices` a mask [d_sae] of the latents that fired.
        """
        self.follow()  # `fit` gives new memory to b_dec (and to a transcoder's b_enc) before the first step
        if not self.fused:
            self.state.refresh()  # some optimizers write where no version counts
        counts = self.stock.num_tokens_since_fired[self.name]
        if not len(x):
            return self._nothing(torch.zeros_like(counts, dtype=torch.bool))
        rows, target = x.float(), y.float() if self.coder.cfg.transcode else None
        self.share: float | Tensor = 1.0
        if self.stock.cfg.micro_acc_steps > 1:
            self.share = variance_of(rows if target is None else target) / total_variance
        self.shared_counts(counts)
        self.k_now, self.lr_now = self.coder.cfg.k, self.group["lr"]
        metrics = self.step(rows, target)
        fvu, auxk, loss = (value * self.share for value in (metrics.fvu, metrics.auxk_loss, metrics.loss))
        multi = loss.new_zeros(())
        if self.config.multi_topk:
            multi = (loss - fvu - self.config.auxk_alpha * auxk) / MULTI_TOPK_WEIGHT
        fired = self.state.num_tokens_since_fired == 0
        return ForwardOutput(None, None, fired, fvu.requires_grad_(), auxk, multi)

    def _nothing(self, fired: Tensor) -> ForwardOutput:
        """Of a batch in which every token is excluded."""
        zero = self.coder.b_dec.new_zeros(())
        if not self.fused:
            zeros = {name: torch.zeros_like(link.param) for name, link in self.links.items()}
            super().take_gradients(zeros)
        return ForwardOutput(None, None, fired, zero.clone().requires_grad_(), zero, zero)

    def take_gradients(self, grads: dict[str, Tensor]) -> None:
        if self.acc_steps > 1:
            for grad in grads.values():
                grad.mul_(self.share / self.acc_steps)
        super().take_gradients(grads)


def is_plain_adam(optimizer: Any, group: dict[str, Any]) -> bool:
    others = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")
    return type(optimizer) is torch.optim.Adam and not any(group[name] for name in others)


def lent(trainer: Any, name: str, backend: str, compute_dtype: str) -> AbstractContextManager[None]:
    """Let an engine stand in for what `fit` calls of a coder: its forward pass; the projection of W_dec's gradient,
    which the engine has done; and the unit norm where the engine keeps it."""
    engine = Engine(trainer, name, backend, compute_dtype)
    methods = {"forward": engine, "remove_gradient_parallel_to_decoder_directions": lambda: None}
    if engine.fused:
        methods["set_decoder_norm_to_unit_norm"] = lambda: None
    return during(partial(replace, trainer.saes[name], **methods))
