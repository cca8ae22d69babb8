"""Training an SAE end to end: by what the language model does with the reconstruction, not by its distance alone.

The SAE is spliced in at a hook point and the gradient comes back through the rest of the model, which is frozen:

    loss = KL(model || model with the SAE), or the cross-entropy of the next token with the SAE inside,
         + mse_coefficient * FVU at the hook point
         + downstream_coefficient * mean over later hook points of the mean of ||a_spliced - a||^2 / ||a||^2

KL alone is "e2e", KL and distances at the layers after it "e2e + downstream" (Braun et al. 2024, arXiv 2405.12241, who
do not divide by ||a||^2; here a token with a huge norm counts like any other). sparsify calls KL or cross-entropy alone
`kl` and `ce`. The model runs twice a step; training from cached activations (`saefast.Trainer`) is many times faster.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saefast import reference
from saefast.activations.hooks import HookPoint, capture_all, described, unwrapped
from saefast.activations.inputs import inputs_for
from saefast.activations.token_rows import Layout, TokenRows
from saefast.autograd import BACKENDS, sae_forward
from saefast.errors import check, one_of, positive
from saefast.interp.places import call_kwargs, next_token_logits
from saefast.sae import SAE, geometric_median

WARMUP, DECAY = 0.05, 0.2  # shares of the steps of `fit`; these and Adam's numbers as in TrainConfig
BETAS, EPS = (0.9, 0.999), 6.25e-10


@dataclass(frozen=True, kw_only=True)
class EndToEndConfig:
    """How an SAE is trained end to end."""

    loss: Literal["kl", "ce"] = "kl"
    """'kl': of the model's next-token distribution to that with the SAE inside; 'ce': of the next token with it."""
    mse_coefficient: float = 0.0
    """Weight of the FVU at the hook point."""
    downstream: tuple[str, ...] = ()
    """Hook points after the SAE's at which activations are compared with the model's own."""
    downstream_coefficient: float = 0.0
    """Weight of these distances, averaged over the hook points."""
    lr: float | None = None
    """Peak learning rate of Adam. Default: 2e-4 / sqrt(d_sae / 2^14), as in TrainConfig."""
    sink_ratio: float | None = 10.0
    """Rows with more than this many times the median norm (attention sinks) stay as they are; None replaces them too."""
    contexts_at_once: int | None = None
    """Contexts in one pass of the model; the gradient of a step is the sum over passes. None: all of them."""
    backend: Literal["auto", "reference", "triton"] = "auto"
    """Which implementation of the SAE's ops runs, see `saefast.autograd`."""

    def __post_init__(self) -> None:
        one_of(self, "loss", ("kl", "ce"))
        one_of(self, "backend", BACKENDS)
        for name in ("mse_coefficient", "downstream_coefficient"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name}: expected 0 or more, got {value!r}")
        paired = bool(self.downstream) == (self.downstream_coefficient > 0)
        check(paired, "downstream: expected hook points and a positive downstream_coefficient, or neither")
        for name in ("lr", "sink_ratio"):
            value = getattr(self, name)
            ok = value is None or 0 < value < math.inf
            check(ok, f"{name}: expected a positive number or None, got {value!r}")
        if self.contexts_at_once is not None:
            positive(self, "contexts_at_once")


class Metrics(NamedTuple):
    """Of one step, before its update; losses in nats, means over the next-token predictions."""

    loss: float  # what was minimised
    kl: float  # KL(model || model with the SAE)
    ce: float  # cross-entropy with the SAE
    ce_clean: float  # cross-entropy of the model as it is
    fvu: float  # at the hook point, of the rows that the SAE replaces
    downstream: float  # mean squared distance at the later hook points, over ||a||^2; 0 without any
    l0: float  # active latents per row


class EndToEnd:
    """Trains `sae` in place, inside `model`.

    Args:
        sae: fp32 (fp64 works with the reference backend), on the device of the model's activations. W_dec keeps unit
            rows; what a gradient would do to their norm is projected out.
        model: a causal language model, called on tokens. It is put in eval mode, its parameters ask for no gradients.
        hook: where the SAE goes, see `saefast.activations.hooks`; it gives activations [n, L, d_in].
        drop_ids: token ids whose rows stay as they are (special tokens), like the attention sinks.

    `max_norm`, the norm above which a row is a sink, is of the first step's tokens; `evaluate_in_model` takes it, too.

    Raises:
        InputError: unknown hook point, not a TopK SAE, weights kept in another format than the biases.
    """

    def __init__(
        self,
        sae: SAE,
        model: Any,
        hook: str,
        config: EndToEndConfig | None = None,
        drop_ids: Iterable[int] = (),
    ) -> None:
        self.sae, self.config = sae, config or EndToEndConfig()
        self.model = unwrapped(model).eval().requires_grad_(False)
        self.kwargs = call_kwargs(self.model)
        self.point = HookPoint(model, hook)
        self.downstream = [HookPoint(model, name) for name in self.config.downstream]
        c = sae.config
        ok = c.activation == "topk" and c == type(c)(c.d_in, c.d_sae, k=c.k)  # and nothing else
        check(ok, f"sae: expected a TopK autoencoder of one layer, got {c}")
        same = sae.W_enc.dtype == sae.W_dec.dtype == sae.b_dec.dtype
        check(same, f"sae: expected weights in {sae.b_dec.dtype} as its biases, got {sae.W_enc.dtype}")
        self.drop_ids = torch.tensor(sorted(drop_ids), dtype=torch.int64, device="cpu")
        self.params = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
        self.peak_lr = self.config.lr or 2e-4 / math.sqrt(sae.config.d_sae / 2**14)
        groups = [{"params": self.params[:2]}, {"params": self.params[2:]}]
        self.optimizer = torch.optim.Adam(groups, self.peak_lr, BETAS, EPS)
        self.max_norm: float | None = None if self.config.sink_ratio else math.inf
        self.input_scale: float | None = None
        self.n_steps = 0

    def step(self, tokens: Tensor, lr: float | None = None) -> Metrics:
        """One optimizer step on tokens [n, L]; `lr` in place of the peak learning rate.

        Raises:
            InputError: tokens of another shape or dtype, no row for the SAE, a loss or gradient that is not finite.
                Then neither weights nor moments have changed.
        """
        metrics = self.gradients(tokens)
        lr = self.peak_lr if lr is None else lr
        # Adam's steps are in the units of a parameter: those of the biases are those of the data, see `saefast.engine.numbers`
        assert self.input_scale is not None
        for group, scale in zip(self.optimizer.param_groups, (1.0, self.input_scale), strict=True):
            group["lr"], group["eps"] = lr / scale, EPS * scale
        W_dec = self.sae.W_dec
        assert W_dec.grad is not None
        reference.project_rows_(W_dec.grad, W_dec.data)
        self.optimizer.step()
        reference.normalize_rows_(W_dec.data)
        self.n_steps += 1
        return metrics

    def fit(self, contexts: Iterable[Tensor], steps: int) -> list[Metrics]:
        """Train for `steps` on batches of tokens [n, L], read again when they end before; one Metrics per step.

        The learning rate rises over the first 5 % of the steps and falls over the last 20 %. If b_dec is 0 it begins
        at the geometric median of the rows of the first batch.
        """
        check(steps > 0, f"steps: expected a positive integer, got {steps}")
        batches, history = _again_and_again(contexts), []
        for step in tqdm(range(1, steps + 1), unit="step", desc="end to end"):
            tokens = next(batches)
            if self.input_scale is None:
                rows = self._look(self._checked(tokens))
                if len(rows) and not self.sae.b_dec.any():
                    self.sae.b_dec.data.copy_(geometric_median(rows))
            factor = min(1.0, step / (WARMUP * steps), (steps + 1 - step) / (DECAY * steps))
            history.append(self.step(tokens, self.peak_lr * factor))
        return history

    def gradients(self, tokens: Tensor) -> Metrics:
        """Put the gradients of the loss of tokens [n, L] into the `.grad` of the SAE's parameters; raises as `step`."""
        tokens = self._checked(tokens)
        if self.input_scale is None:
            self._look(tokens)
        self.optimizer.zero_grad()
        n_predictions = len(tokens) * (tokens.shape[1] - 1)
        sums = torch.zeros(4, dtype=torch.float64, device=tokens.device)  # kl, ce, ce_clean, downstream
        rows = []
        for part in tokens.split(self.config.contexts_at_once or len(tokens)):
            x, figures = self._backward(part, n_predictions, tokens.numel())
            sums += figures
            rows.append(x)
        x = torch.cat(rows)
        check(len(x) > 0, "tokens: expected rows for the SAE, got special tokens and attention sinks only")
        # this term needs no model: one pass of the SAE over all rows, however many passes the model took
        weight = self.config.mse_coefficient
        with torch.set_grad_enabled(weight > 0):
            x_hat, top_acts = self._reconstruct(x)
            unexplained = reference.fvu(x_hat, x)
        if weight > 0:
            (weight * unexplained).backward()
        kl, ce, ce_clean = (sums[:3] / n_predictions).tolist()
        fvu, downstream = float(unexplained.detach()), float(sums[3]) / tokens.numel()
        loss = (kl if self.config.loss == "kl" else ce) + weight * fvu
        loss += self.config.downstream_coefficient * downstream
        grads = [param.grad for param in self.params]
        if not (math.isfinite(loss) and all(g is not None and bool(g.isfinite().all()) for g in grads)):
            self.optimizer.zero_grad()
            got = f"a loss of {loss} at step {self.n_steps + 1}"
            check(False, f"tokens: expected a finite loss and gradient, got {got}; nothing was changed")
        return Metrics(loss, kl, ce, ce_clean, fvu, downstream, float((top_acts > 0).sum()) / len(x))

    def _backward(self, part: Tensor, n_predictions: int, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Both passes over a part of the contexts, and the backward pass.

        Returns the rows that the SAE replaced [r, d_in], and the sums of kl, ce, ce_clean and downstream [4].
        """
        target, found = part[:, 1:].flatten(), []
        with torch.no_grad():
            clean, own = self._run(part, lambda activations: found.append(self._rows(activations, part)))
        x, chosen = found[0]

        def splice(activations: Tensor) -> Tensor | None:
            if not len(x):
                return None
            flat = activations.flatten(0, -2)
            return flat.index_put((chosen,), self._reconstruct(x)[0].to(flat)).view_as(activations)

        spliced, changed = self._run(part, splice)
        with torch.set_grad_enabled(self.config.loss == "kl"):
            kl = F.kl_div(spliced, clean, reduction="sum", log_target=True)
        with torch.set_grad_enabled(self.config.loss == "ce"):
            ce = F.nll_loss(spliced, target, reduction="sum")
        loss, distance = (kl if self.config.loss == "kl" else ce) / n_predictions, spliced.new_zeros(())
        for after, before in zip(changed, own, strict=True):
            squares = (after - before).square().sum(dim=1) / before.square().sum(dim=1)
            distance = distance + squares.sum() / len(own)
        loss = loss + self.config.downstream_coefficient * distance / n_tokens
        if len(x):
            loss.backward()
        ce_clean = F.nll_loss(clean, target, reduction="sum")
        return x, torch.stack([kl, ce, ce_clean, distance]).detach().double()

    def _run(self, part: Tensor, function: Any) -> tuple[Tensor, list[Tensor]]:
        """One pass with function at the hook point: log-probabilities of the next tokens [m (L - 1), vocabulary],
        and the activations at the later hook points [m L, width]."""
        seen: dict[int, Tensor] = {}

        def keep(place: int, activations: Tensor) -> None:
            seen[place] = activations.flatten(0, -2).clone()  # the pass goes on, and may change them in place

        with ExitStack() as stack:
            stack.enter_context(self.point.attached(function))
            for place, point in enumerate(self.downstream):
                stack.enter_context(point.attached(partial(keep, place)))
            logits = next_token_logits(self.model, part, **self.kwargs)[:, :-1].flatten(0, 1)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.log_softmax(dim=1), [seen[place] for place in range(len(self.downstream))]

    def _rows(self, activations: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that the SAE replaces [r, d_in], and which of all rows they are [m L] bool."""
        got, want = list(activations.shape), [*part.shape, self.sae.config.d_in]
        check(got == want, f"hook: expected activations {want} at {self.point.name!r}, got {got}")
        flat = activations.flatten(0, -2)
        chosen = ~torch.isin(part.flatten(), self.drop_ids.to(part.device)).to(flat.device)
        if self.max_norm is not None:
            chosen &= ~(flat.norm(dim=1) > self.max_norm)  # NaN is no sink: it goes on, into the loss
        x = flat[chosen].to(self.sae.b_dec.dtype)
        self.sae.check_input(x)
        return x, chosen

    def _reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.sae.W_enc, self.sae.b_enc, self.sae.W_dec, self.sae.b_dec
        return sae_forward(x, *weights, self.sae.config.top_k, self.config.backend)[:2]

    @torch.no_grad()
    def _look(self, tokens: Tensor) -> Tensor:
        """Set what the first tokens decide: which rows are sinks, and the scale of the rest, which is returned."""
        parts = tokens.split(self.config.contexts_at_once or len(tokens))
        points = [self.point, *self.downstream]  # raises for one that the pass never reaches
        layouts = TokenRows(points, parts[0], self.kwargs).layouts
        check(set(layouts) == {Layout(0, 1)}, f"hook: expected activations [n, L, width], got {layouts}")
        captured = [capture_all(points, part, **self.kwargs)[0] for part in parts]
        finite = all(bool(given.isfinite().all()) for given in captured)
        check(finite, f"tokens: expected finite activations at {self.point.name!r}, got NaN or Inf")
        if self.max_norm is None and self.config.sink_ratio:
            norms = torch.cat([activations.flatten(0, -2).norm(dim=1) for activations in captured])
            self.max_norm = self.config.sink_ratio * float(norms.median())
        x = torch.cat([self._rows(given, part)[0] for given, part in zip(captured, parts, strict=True)])
        if not len(x):  # they are refused, and the next ones decide
            self.max_norm = None if self.config.sink_ratio else math.inf
            return x
        mean_square = float(x.double().square().sum(dim=1).mean())
        self.input_scale = math.sqrt(self.sae.config.d_in / mean_square) if mean_square > 0 else 1.0
        return x

    def _checked(self, tokens: Tensor) -> Tensor:
        is_ids = isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.dtype == torch.int64
        ok = is_ids and len(tokens) > 0 and tokens.shape[1] > 1
        check(ok, f"tokens: expected token ids [n, at least 2] in torch.int64, got {described(tokens)}")
        return inputs_for(self.model, tokens).texts[0].tokens


def _again_and_again(contexts: Iterable[Tensor]) -> Iterator[Tensor]:
    while True:
        empty = True
        for tokens in contexts:
            empty = False
            yield tokens
        check(not empty, "contexts: expected at least one batch, or one that can be read again; got no more")
