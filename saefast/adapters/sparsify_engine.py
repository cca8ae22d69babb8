"""The engine behind `saefast.adapters.sparsify.Trainer`: one for each of its sparse coders."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sparsify.sparse_coder import ForwardOutput
from torch import Tensor

from saefast.adapters.driven import Driven
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.reference import Grads, Params
from saefast.reference import total_variance as variance_of
from saefast.sae import SAE

ACTIVATIONS = {"topk": "topk", "groupmax": "group_max"}
MULTI_TOPK, MULTI_TOPK_WEIGHT = 4, 1 / 8  # sparsify's


class Engine(Driven):
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
        self.trained: dict[str, Any] = {
            "W_enc": coder.encoder.weight, "b_enc": coder.encoder.bias, "W_dec": coder.W_dec, "b_dec": coder.b_dec,
        }  # fmt: skip
        if coder.W_skip is not None:
            self.trained["W_skip"] = coder.W_skip
        self.memory = {key: param.data for key, param in self.trained.items()}
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
        super().__init__(SAE.of(sae_config, self.memory), config)
        if self.fused:
            self._share_moments(optimizer)

    def _share_moments(self, optimizer: Any) -> None:
        """Go on from the optimizer's moments, and keep them where the optimizer saves them from."""
        for key, (exp_avg, exp_avg_sq) in self.moments().items():
            kept = optimizer.state.get(self.trained[key])
            step = torch.zeros(())
            if kept:
                exp_avg.copy_(kept["exp_avg"])
                exp_avg_sq.copy_(kept["exp_avg_sq"])
                step.copy_(kept["step"])
            self.state.step = int(step)
            optimizer.state[self.trained[key]] = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self.steps = [optimizer.state[param]["step"] for param in self.trained.values()]
        self.state.refresh()

    @property
    def _interval(self) -> int:
        return 1  # `fit` waits for the device at every step

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
        self._follow()
        counts = self.stock.num_tokens_since_fired[self.name]
        if not len(x):
            return self._nothing(torch.zeros_like(counts, dtype=torch.bool))
        rows, target = x.float(), y.float() if self.coder.cfg.transcode else None
        self.share: float | Tensor = 1.0
        if self.stock.cfg.micro_acc_steps > 1:
            self.share = variance_of(rows if target is None else target) / total_variance
        self.state.num_tokens_since_fired.copy_(counts)
        self.k_now, self.lr_now = self.coder.cfg.k, self.group["lr"]
        metrics = self.step(rows, target)
        if self.fused:
            for step in self.steps:
                step += 1
        fvu, auxk, loss = (value * self.share for value in (metrics.fvu, metrics.auxk_loss, metrics.loss))
        multi = loss.new_zeros(())
        if self.config.multi_topk:
            multi = (loss - fvu - self.config.auxk_alpha * auxk) / MULTI_TOPK_WEIGHT
        fired = self.state.num_tokens_since_fired == 0
        return ForwardOutput(None, None, fired, fvu.requires_grad_(), auxk, multi)

    def _nothing(self, fired: Tensor) -> ForwardOutput:
        """Of a batch in which every token is excluded."""
        zero = self.memory["b_dec"].new_zeros(())
        if not self.fused:
            self._give({key: torch.zeros_like(param) for key, param in self.trained.items()})
        return ForwardOutput(None, None, fired, zero.clone().requires_grad_(), zero, zero)

    def _follow(self) -> None:
        """Take over what was set from outside. Before the first step `fit` gives new memory to b_dec (and to a
        transcoder's b_enc); optimizers other than the engine's change the parameters in place."""
        moved = [
            key for key, param in self.trained.items() if param.data_ptr() != self.memory[key].data_ptr()
        ]
        for key in moved:
            self.memory[key].copy_(self.trained[key].data)
            self.trained[key].data = self.memory[key]
        if moved or not self.fused:
            self.state.refresh()

    def _apply(self, grads: Grads, extra_grads: dict[str, Tensor], factor: Tensor) -> None:
        found = dict(zip(Params._fields, grads, strict=True)) | extra_grads
        if self.acc_steps > 1:
            for grad in found.values():
                grad.mul_(self.share / self.acc_steps)
        self._give(found)

    def _give(self, grads: dict[str, Tensor]) -> None:
        for key, grad in grads.items():
            param = self.trained[key]
            param.grad = grad if param.grad is None else param.grad.add_(grad)


def is_plain_adam(optimizer: Any, group: dict[str, Any]) -> bool:
    others = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")
    return type(optimizer) is torch.optim.Adam and not any(group[name] for name in others)


@contextmanager
def lent(trainer: Any, name: str, backend: str, compute_dtype: str) -> Iterator[None]:
    """Let an engine stand in for what `fit` calls of a coder: its forward pass; the projection of W_dec's gradient,
    which the engine has done; and the unit norm where the engine keeps it."""
    engine, coder = Engine(trainer, name, backend, compute_dtype), trainer.saes[name]
    coder.forward = engine
    coder.remove_gradient_parallel_to_decoder_directions = lambda: None
    if engine.fused:
        coder.set_decoder_norm_to_unit_norm = lambda: None
    try:
        yield
    finally:
        for method in (
            "forward",
            "remove_gradient_parallel_to_decoder_directions",
            "set_decoder_norm_to_unit_norm",
        ):
            coder.__dict__.pop(method, None)
