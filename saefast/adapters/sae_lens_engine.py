"""The engine on the parameters of a SAELens SAE and the moments of its torch Adam, and what a step of it returns."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from saefast.adapters.linked import Linked
from saefast.config.train import SAEConfig, TrainConfig
from saefast.engine.architectures.penalties import penalty
from saefast.engine.code import Code, where
from saefast.engine.reconstruct import reconstruct
from saefast.engine.stages import Metrics, centre
from saefast.storage import row_norms

NAMES = {
    "W_enc": "W_enc.T",
    "b_enc": "b_enc",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "threshold": "threshold",
}


class Seen(NamedTuple):
    """What the weights make of a batch before its step."""

    sae_out: Tensor  # [B, d_in]
    feature_acts: Callable[[], Tensor]  # [B, d_sae]; only now made dense
    losses: dict[str, Tensor]  # those that the metrics of the step do not have


class Engine(Linked):
    """Trains a SAE of SAELens, and tells SAELens what it wants to know about a step."""

    def __init__(self, theirs: Any, optimizer: torch.optim.Adam, sae: SAEConfig, config: TrainConfig) -> None:
        super().__init__(theirs, NAMES, sae, config, optimizer)
        self.largest_batch = config.batch_size  # passes without firing are counted, as full batches
        if sae.activation in ("batch_topk", "matryoshka"):
            self.state.smallest = torch.zeros_like(self.state.extra["threshold"].value)

    def prepare(self, lr: float, sparsity: float, passes_since_fired: Tensor) -> None:
        """Before a step: what SAELens decides. passes_since_fired: [d_sae] batches since the latent was last active."""
        self.follow()
        self.lr_now, self.sparsity_now = lr, sparsity
        k = getattr(self.theirs.activation_fn, "k", None)
        self.k_now = None if k is None else int(k)
        self.state.fired.zero_()
        if self.sae.config.activation == "jumprelu":
            # as theirs does before a step; ours does it after one, but a checkpoint of theirs may come with less
            self.state.extra["threshold"].value.clamp_min_(0)
        if self.config.auxk_alpha or self.config.preact == "dead":
            self.state.num_tokens_since_fired.copy_(passes_since_fired.long() * self.config.batch_size)

    def move_threshold(self) -> None:
        """After a step: `topk_threshold` follows the smallest activation that was kept; that is Inf if there was none."""
        if self.state.smallest is not None:
            smallest, before = self.state.smallest.double(), self.theirs.topk_threshold
            rate = self.theirs.cfg.topk_threshold_lr
            moved = (1 - rate) * before + rate * smallest
            self.theirs.topk_threshold = torch.where(smallest.isfinite(), moved, before)

    @torch.no_grad()
    def see(self, rows: Tensor) -> Seen:
        """The forward pass of the next step on rows [B, d_in], with the weights as they are before it."""
        step, sae, n_tokens, cfg = self.next_step(rows), self.sae.config, len(rows), self.theirs.cfg
        code = self.arch.select(step, centre(step, rows).centred)
        if sae.group_sizes:  # one reconstruction of the whole code, not one of each group
            plain = replace(sae, activation="batch_topk", group_sizes=())
            step = step._replace(plan=replace(step.plan, sae=plain))
        run = reconstruct(step, code, rows)
        losses = {}
        if len(sae.group_sizes) > 1:
            losses["mse_loss"] = run.squares.sum() / n_tokens
        for width in sae.group_sizes[:-1]:
            inner = code._replace(acts=where(code.layout[0] < width, code.acts))
            losses[f"inner_mse_loss_{width}"] = reconstruct(step, inner, rows).squares.sum() / n_tokens
        weighed = self.config.norm_weighted or sae.scale_by_norm
        norms = row_norms(self.state.weights.dec) if weighed else None
        if self.config.penalty == "tanh":
            losses["l0_loss"] = penalty(step, code, code.acts, norms).value
        acts = code.acts if norms is None or not sae.scale_by_norm else code.acts * code.of(norms)
        sparse = sae.activation == "topk" and cfg.use_sparse_activations
        return Seen(rows + run.whole, lambda: whole_code(code, acts, n_tokens, cfg.d_sae, sparse), losses)

    @torch.no_grad()
    def hidden_pre(self, rows: Tensor) -> Tensor:
        """rows [B, d_in] -> [B, d_sae], pre-activations as they select by them."""
        step, weights = self.next_step(rows), self.state.weights
        centred = centre(step, rows).centred
        found = self.ops.encode_dense(centred, weights.enc.shadow, weights.b_enc.value)
        return found * row_norms(weights.dec) if self.sae.config.scale_by_norm else found

    def losses(self, metrics: Metrics, seen: Seen | None) -> dict[str, Tensor] | None:
        """By SAELens's names; None where they cannot be told apart without `seen`."""
        kind, plan = self.sae.config.activation, self.config
        aux = plan.auxk_alpha * metrics.auxk_loss
        found = {"mse_loss": metrics.loss - aux - metrics.penalty}
        if kind == "matryoshka" and len(self.sae.config.group_sizes) > 1:
            if seen is None:
                return None
            mse, *inner = seen.losses.items()
            return dict([mse, ("auxiliary_reconstruction_loss", aux), *inner])
        if kind == "relu":
            return found | {"l1_loss": metrics.penalty}
        if kind != "jumprelu":
            return found | {"auxiliary_reconstruction_loss": aux}
        if plan.preact == "none":
            return found | {"l0_loss": metrics.penalty}
        if plan.penalty == "l0":
            l0_loss = self.sparsity_now * metrics.l0
        elif seen is not None:
            l0_loss = seen.losses["l0_loss"]
        else:
            return None
        pre_act_loss = where(metrics.dead_frac > 0, metrics.penalty - l0_loss)
        return found | {"l0_loss": l0_loss, "pre_act_loss": pre_act_loss}


def whole_code(code: Code, acts: Tensor, n_tokens: int, d_sae: int, sparse: bool) -> Tensor:
    """The code with its activations replaced by `acts`, as a matrix [B, d_sae], COO if `sparse`."""
    if code.indices is None:
        return acts
    tokens = code.tokens()
    used = tokens < n_tokens
    places, values = torch.stack([tokens, code.indices.flatten().long()])[:, used], acts.flatten()[used]
    matrix = torch.sparse_coo_tensor(
        places, values, (n_tokens, d_sae), dtype=values.dtype, device=values.device
    )
    return matrix if sparse else matrix.to_dense()


class StepOutput(TrainStepOutput):
    """As SAELens's, of a step of the engine. `sae_in`, `loss` and `metrics` are always there, `losses` nearly always;
    the rest where `SAETrainer` says so: the weights have moved since, so it could not be made afterwards."""

    def __init__(self, feature_acts: Callable[[], Tensor] | None = None, **known: Any) -> None:
        self.__dict__.update(known, _feature_acts=feature_acts)

    def __getattr__(self, name: str) -> Any:
        make = vars(self).get("_feature_acts")
        if name == "feature_acts" and make is not None:
            self.feature_acts = make()
            return self.feature_acts
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"{name}: not kept in this step; set `trainer.full_output = True` before it")

    def __repr__(self) -> str:
        return f"StepOutput(loss={self.loss!r})"
