"""The engine on the parameters of a llamascopium SAE and the moments of its torch Adam."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.adapters.driven import Driven
from saefast.config.train import SAEConfig, TrainConfig
from saefast.engine import auxk
from saefast.engine.plan import Plan
from saefast.engine.step import Metrics
from saefast.errors import check
from saefast.sae import SAE

NAMES = {
    "W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D",
    "threshold": "activation_function.log_jumprelu_threshold",
}  # fmt: skip
KINDS = {"topk": "topk", "batchtopk": "batch_topk", "relu": "relu", "jumprelu": "jumprelu"}
WITH_K = ("topk", "batchtopk")
PENALTIES = {"relu": {"power": "l1"}, "jumprelu": {"tanh": "tanh"}}  # by act_fn and sparsity_loss_type
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def unsupported(sae: Any, cfg: Any) -> str | None:
    """Why the stock code must train this: what the engine does not have. None: it has all."""
    own, kind, sparsity = sae.cfg, sae.cfg.act_fn.lower(), cfg.sparsity_loss_type
    known = sparsity is None or (sparsity in PENALTIES.get(kind, ()) and (sparsity != "power" or cfg.p == 1))
    hooked = any(point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values())
    found = (
        (type(sae).__name__ != "SparseAutoEncoder", f"sae is a {type(sae).__name__}"),
        (sae.device_mesh is not None, "device_mesh is set"),
        (own.dtype != torch.float32, f"dtype is {own.dtype}"),
        (getattr(own, "use_glu_encoder", False), "use_glu_encoder is True"),
        (kind not in KINDS, f"act_fn is {own.act_fn!r}"),
        (not all(p.requires_grad for p in sae.parameters()), "a parameter does not require a gradient"),
        (hooked, "there is a hook on the SAE"),
        (not known, f"sparsity_loss_type is {sparsity!r} (p = {cfg.p}) with act_fn {own.act_fn!r}"),
        (
            bool(cfg.auxk_coefficient) and kind not in WITH_K,
            f"auxk_coefficient is set, act_fn is {own.act_fn!r}",
        ),
        (cfg.optimizer_class != "adam", f"optimizer_class is {cfg.optimizer_class!r}"),
        (cfg.clip_grad_norm > 0, "clip_grad_norm is set"),
        (cfg.log_frequency == 1 and not cfg.skip_metrics_calculation, "log_frequency is 1"),
    )
    return next((reason for holds, reason in found if holds), None)


class Shared(NamedTuple):
    """A parameter of theirs, with the views of our memory that it and its moments are."""

    param: nn.Parameter
    value: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Engine(Driven):
    """Trains `theirs` in place: its parameters and the optimizer's moments become views of our memory.

    Theirs: pre = x @ W_E + b_E, x_hat = acts @ W_D + b_D, the loss a mean over tokens of squared errors. Rows of
    W_D have any norm; with sparsity_include_decoder_norm pre * ||W_D row|| is what is chosen, or compared.
    """

    def __init__(self, theirs: Any, cfg: Any, optimizer: torch.optim.Adam, graph: bool) -> None:
        kind, device = theirs.cfg.act_fn.lower(), theirs.W_E.device
        named = dict(theirs.named_parameters())
        sae = SAE(_architecture(theirs.cfg, kind), device="meta")
        for name, param in sae.named_parameters():
            value = torch.zeros(param.shape, device=device)  # BatchTopK's threshold, a b_D that is not there
            if (their_name := NAMES[name]) in named:
                value = _turned(name, named[their_name].data).contiguous()
                value = value.exp() if name == "threshold" else value
            setattr(sae, name, nn.Parameter(value, requires_grad=param.requires_grad))
        super().__init__(sae, _recipe(theirs.cfg, kind, cfg, optimizer.param_groups[0], device, graph))
        self.optimizer_of_theirs = optimizer
        self.shared = [
            self._share(name, named[their_name]) for name, their_name in NAMES.items() if their_name in named
        ]
        self.versions: list[int] = []  # of the parameters, when the engine last looked
        self.room, self.count_at, self.largest_batch = (
            0,
            0,
            0,
        )  # for dead latents, until a step from this one on

    def _share(self, name: str, param: nn.Parameter) -> Shared:
        value = (
            self.state.extra["threshold"].value if name == "threshold" else self.state.params._asdict()[name]
        )
        shared = Shared(param, *(_turned(name, tensor) for tensor in (value, *self.moments()[name])))
        shared.value.copy_(param.data)
        old = self.optimizer_of_theirs.state.get(param) or {"step": torch.zeros(())}
        if "exp_avg" in old:
            shared.exp_avg.copy_(old["exp_avg"])
            shared.exp_avg_sq.copy_(old["exp_avg_sq"])
        param.data = shared.value
        moments = {"exp_avg": shared.exp_avg, "exp_avg_sq": shared.exp_avg_sq}
        self.optimizer_of_theirs.state[param] = {"step": old["step"], **moments}
        return shared

    @property
    def is_linked(self) -> bool:
        """Whether parameters and moments are still ours: somebody may have replaced them."""
        return all(
            shared.param.data_ptr() == shared.value.data_ptr()
            and self.optimizer_of_theirs.state.get(shared.param, {}).get("exp_avg") is shared.exp_avg
            for shared in self.shared
        )

    def release(self) -> None:
        """Give parameters and moments memory of their own, laid out as in the stock code."""
        for shared in self.shared:
            shared.param.data = shared.param.data.contiguous()
            state = self.optimizer_of_theirs.state[shared.param]
            state |= {key: moment.contiguous() for key, moment in state.items() if key != "step"}

    def catch_up(self) -> None:
        """What others did to the parameters since the last step: a stock step, for example."""
        versions = [shared.param._version for shared in self.shared]
        if versions != self.versions:
            self.state.step = int(self.optimizer_of_theirs.state[self.shared[0].param]["step"])
            self.state.refresh()
            self.versions = versions

    def train(self, x: Tensor, label: Tensor | None, mask: Tensor | None) -> Metrics:
        """One step on x [..., d_model], without the tokens whose mask [...] is 0. label: of a transcoder."""
        x = x.flatten(0, -2).float()
        label = None if label is None else label.flatten(0, -2).float()
        if mask is not None:
            kept = mask.flatten().bool()
            check(bool(kept.any()), "mask: expected at least one token, got none")
            x, label = x[kept], None if label is None else label[kept]
        with torch.autocast(x.device.type, enabled=False):
            metrics = self.step(x, label)
        for shared in self.shared:
            self.optimizer_of_theirs.state[shared.param]["step"] += 1
        return metrics

    def dead_room(self, batch_size: int) -> int:
        """At least as many latents as are dead in the next step."""
        return self._plan(batch_size).dead_capacity

    def _plan(self, batch_size: int) -> Plan:
        # stock steps in between: the trainer's own interval would miss its turn
        plan, state = super()._plan(batch_size), self.state
        if plan.auxk_alpha and (state.step >= self.count_at or batch_size > self.largest_batch):
            self.largest_batch = max(batch_size, self.largest_batch)
            since, ahead = state.num_tokens_since_fired, self._interval * self.largest_batch
            self.room = auxk.capacity(since, plan.dead_feature_threshold, ahead, exact=not self.on_gpu)
            self.count_at = state.step + self._interval
        return plan._replace(dead_capacity=self.room if plan.auxk_alpha else 0)


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Their W_E is [d_model, d_sae], our W_enc [d_sae, d_in]."""
    return tensor.T if name == "W_enc" else tensor


def _architecture(own: Any, kind: str) -> SAEConfig:
    activation: Any = KINDS[kind]
    return SAEConfig(
        d_in=own.d_model,
        d_sae=own.d_sae,
        activation=activation,
        k=own.top_k if kind in WITH_K else None,
        d_out=None if own.hook_point_in == own.hook_point_out else own.d_model,
        pre_bias=False,
        scale_by_norm=kind != "relu" and own.sparsity_include_decoder_norm,  # which ReLU does not see
    )


def _recipe(
    own: Any, kind: str, cfg: Any, group: dict[str, Any], device: torch.device, graph: bool
) -> TrainConfig:
    amp = cfg.amp_dtype or torch.get_autocast_dtype(device.type)
    compute_dtype: Any = DTYPES[amp] if device.type == "cuda" else "fp32"
    options: dict[str, Any] = {}
    if cfg.sparsity_loss_type is not None:
        options |= {"penalty": PENALTIES[kind][cfg.sparsity_loss_type], "norm_weighted": True}
        options |= {"tanh_scale": cfg.tanh_stretch_coefficient}
    if kind == "jumprelu":
        options |= {"straight_through": "positive", "log_threshold": True, "lr_extra": cfg.jumprelu_lr_factor}
        options |= {"bandwidth": own.jumprelu_threshold_window}
        if cfg.lp_coefficient:
            options |= {"preact": "all", "preact_coefficient": cfg.lp_coefficient}
    elif cfg.auxk_coefficient:
        options |= {"auxk_alpha": cfg.auxk_coefficient, "k_aux": cfg.k_aux, "auxk_scale": "loss"}
        options |= {"auxk_detached": False, "count_before_auxk": True}
        options |= {"dead_feature_threshold": max(1, math.ceil(cfg.dead_threshold))}
    return TrainConfig(
        total_tokens=1,
        loss="mse",
        normalize_input=False,
        unit_norm=False,
        betas=group["betas"],
        eps=group["eps"],
        lr_b_dec=1.0 if own.use_decoder_bias else 0.0,
        compute_dtype=compute_dtype,
        cuda_graph=graph,
        **({"auxk_alpha": 0.0} | options),
    )
