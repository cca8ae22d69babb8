"""The engine inside the training loop of another project: what every drop-in trainer is built on.

`Linked` trains the parameters of their module in place. The parameters, and the moments that their torch Adam keeps, become
views of the engine's memory. So there is one state, and steps of the engine and steps of the stock code may follow each
other in any order; `follow` finds what others changed in between. The files of each project hold the names of its
parameters, its recipe in our options, and its loop.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine import auxk
from saefast.engine.architecture import Step
from saefast.engine.numbers import Scheduled
from saefast.engine.plan import Plan
from saefast.engine.stages import Metrics
from saefast.engine.step import step_of
from saefast.reference import Grads, Params
from saefast.sae import SAE
from saefast.storage import Matrix, Vector
from saefast.train.stepper import Stepper

COMPUTE_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Link(NamedTuple):
    """A parameter of theirs, and the views of our memory that it and its moments are, in the shape that it has there."""

    param: nn.Parameter
    value: Tensor
    moments: dict[str, Tensor]  # by the keys of torch's Adam; empty if the engine does not take its place


class Linked(Stepper):
    """A `Stepper` of the parameters of another project's module. Their loop decides what schedules decide elsewhere: before
    a step, set `lr_now`, `sparsity_now` (the weight of the penalty) and `k_now`. The input is taken as it comes.

    Args:
        theirs: the module.
        names: our name of a parameter -> theirs, with ".T" behind it where theirs is the transpose of ours. A parameter
            that `theirs` does not have is 0 here.
        sae, config: the module and its recipe in our options. `normalize_input` must be False; schedules and
            `total_tokens` have no meaning. With `log_threshold` their parameter is the logarithm of the threshold.
        optimizer: their torch Adam, in whose place the engine makes the step. None: the engine hands out gradients (see
            `take_gradients`), and `config.optimizer` must not be "adam".

    Raises:
        InputError: as `Stepper`.
    """

    def __init__(
        self,
        theirs: nn.Module,
        names: Mapping[str, str],
        sae: SAEConfig,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        named = dict(theirs.named_parameters())
        self.names = {our: name.removesuffix(".T") for our, name in names.items()}
        params = {our: named[name] for our, name in self.names.items() if name in named}
        self.transposed = {our for our in params if names[our].endswith(".T")}
        values = {our: self._turned(our, param.data).contiguous() for our, param in params.items()}
        if config.log_threshold:
            values["threshold"] = values["threshold"].exp()
        for our, param in SAE(sae, device="meta").named_parameters():
            values.setdefault(our, values["W_enc"].new_zeros(param.shape))
        super().__init__(SAE.of(sae, values), config)
        self.theirs: Any = theirs
        self.frozen = frozenset(our for our, param in params.items() if not param.requires_grad)
        self.their_optimizer = optimizer
        self.input_scale = self.output_scale = 1.0
        self.lr_now = self.sparsity_now = 0.0
        self.k_now: int | None = None  # None: that of the SAE
        self.largest_batch = 0  # in tokens, see `dead_room`
        self.counts_per_step = 1  # how often a step of theirs may count its batch in `num_tokens_since_fired`
        self.recount_at = 0  # the step in which `dead_room` counts next
        self._room = 0
        self._versions: list[int] = []
        self._hook: RemovableHandle | None = None  # see `save_contiguous`

        enc, dec, b_enc, b_dec = self.state.weights
        vectors = {"b_enc": b_enc, "b_dec": b_dec} | self.state.extra
        kept: dict[str, Matrix | Vector] = {"W_enc": enc, "W_dec": dec, **vectors}
        self.links: dict[str, Link] = {}
        for our, param in params.items():
            memory, moments = kept[our], {}
            if optimizer is not None:
                moments = {"exp_avg": memory.exp_avg, "exp_avg_sq": memory.exp_avg_sq}
            value = memory.weight if isinstance(memory, Matrix) else memory.value
            turned = {key: self._turned(our, moment) for key, moment in moments.items()}
            self.links[our] = Link(param, self._turned(our, value), turned)
        self.follow()

    def _turned(self, our: str, tensor: Tensor) -> Tensor:
        return tensor.T if our in self.transposed else tensor

    def _state_of(self, link: Link) -> dict[str, Tensor]:
        """What their optimizer keeps of a parameter: asked for each time, as `load_state_dict` replaces it."""
        return {} if self.their_optimizer is None else self.their_optimizer.state[link.param]

    @property
    def is_linked(self) -> bool:
        """Whether parameters and moments still are views of our memory: others may have put new tensors in their place."""
        return all(
            same_memory(link.param, link.value)
            and all(self._state_of(link).get(key) is ours for key, ours in link.moments.items())
            for link in self.links.values()
        )

    def follow(self) -> None:
        """Take over what others changed since the last step. Tensors that they put in the place of ours (a checkpoint) are
        copied into our memory and linked again; what they wrote in place (a stock step) is seen by its version."""
        replaced = False
        for link in self.links.values():
            if not same_memory(link.param, link.value):
                link.param.data = link.value.copy_(link.param.data)
                replaced = True
            state = self._state_of(link)
            if link.moments:
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))
            for key, ours in link.moments.items():
                if state.get(key) is not ours:
                    state[key] = ours.copy_(state[key]) if key in state else ours.zero_()
                    replaced = True
        versions = [link.param._version for link in self.links.values()]
        if replaced or versions != self._versions:
            first = next(iter(self.links.values()))
            self.state.step = int(self._state_of(first).get("step", self.state.step))
            self.state.refresh()
            self._versions = versions
        if replaced:
            self.recount_at = 0

    def shared_counts(self, theirs: Tensor) -> Tensor:
        """num_tokens_since_fired [d_sae] int64 of theirs -> that of the engine, after a copy where theirs is another."""
        ours = self.state.num_tokens_since_fired
        if not same_memory(theirs, ours):
            ours.copy_(theirs)
            self.recount_at = 0
        return ours

    def dead_room(self, batch_size: int) -> int:
        """How many dead latents the next step has room for: at least as many as there can be in it, see
        `saefast.engine.auxk`. They are counted once in a while, which waits for the device.

        `num_tokens_since_fired` counts in batches of `batch_size` tokens, or of `largest_batch` if that is more.
        """
        config, state = self.config, self.state
        if not config.auxk_alpha:
            self._room = 0
        elif state.step >= self.recount_at or batch_size > self.largest_batch:
            self.largest_batch = max(batch_size, self.largest_batch)
            batches_ahead = self.counts_per_step * (self._interval - 1) + config.count_before_auxk
            silent_for, threshold = state.num_tokens_since_fired, config.dead_feature_threshold
            n = auxk.capacity(silent_for, threshold, batches_ahead * self.largest_batch)
            self._room = auxk.rounded(n, len(silent_for)) if self.on_gpu else n
            self.recount_at = state.step + self._interval
        return self._room

    def step(self, x: Tensor, target: Tensor | None = None, checked: bool = False) -> Metrics:
        """As `Trainer.step`, in fp32 where they have autocast on; counted as a step of their
        optimizer."""
        self.dead_room(len(x))
        with torch.autocast(x.device.type, enabled=False):
            metrics = super().step(x, target, checked)
        for link in self.links.values():
            if link.moments:
                self._state_of(link)["step"] += 1
        return metrics

    def next_step(self, rows: Tensor) -> Step:
        """What the next step reads, on rows [B, row_width]; its numbers in fp32."""
        plan = self.plan(len(rows))
        numbers = self.numbers(plan, self.state.step + 1, len(rows))
        return step_of(self.ops, self.state, plan, numbers.float())

    # What `Trainer` asks for in every step. None of these changes its state.

    def lr(self, step: int) -> float:
        return self.lr_now

    def scheduled(self, step: int) -> Scheduled:
        return super().scheduled(step)._replace(lr=self.lr_now, sparsity=self.sparsity_now)

    def plan(self, batch_size: int) -> Plan:
        plan = super().plan(batch_size)
        return dataclasses.replace(plan, k=self.k_now or plan.k, dead_capacity=self._room)

    def _apply(self, grads: Grads, extra_grads: dict[str, Tensor], factor: Tensor) -> None:
        self.take_gradients(dict(zip(Params._fields, grads, strict=True)) | extra_grads)

    def take_gradients(self, grads: dict[str, Tensor]) -> None:
        """Without an optimizer: add the gradients of a step, by our names, to `.grad` of their parameters."""
        for our, grad in grads.items():
            if our in self.frozen:
                continue
            param, grad = self.links[our].param, self._turned(our, grad)
            param.grad = grad if param.grad is None else param.grad.add_(grad)

    def save_contiguous(self) -> None:
        """Until `release`, `theirs.state_dict()` has contiguous copies of transposed views: safetensors takes nothing else."""

        def contiguous(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
            for our in self.transposed:
                name = prefix + self.names[our]
                state[name] = state[name].contiguous()

        self._hook = self.theirs.register_state_dict_post_hook(contiguous)

    def release(self) -> None:
        """Leave parameters and moments as after stock steps: laid out in memory as in the stock code."""
        if self._hook is not None:
            self._hook.remove()
        for link in self.links.values():
            link.param.data = link.param.data.contiguous()
            state = self._state_of(link)
            state |= {key: state[key].contiguous() for key in link.moments if key in state}


def same_memory(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.data_ptr() == ours.data_ptr() and theirs.shape == ours.shape


def replace(owner: Any, **values: Any) -> Callable[[], None]:
    """Set attributes of a module, a class or an object until the function that is returned is called."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    for name, value in values.items():
        setattr(owner, name, value)

    def undo() -> None:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            elif name in vars(owner):
                delattr(owner, name)

    return undo


@contextmanager
def during(patch: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Call `patch` at the beginning of a with statement, and at its end what `patch` returned."""
    undo = patch()
    try:
        yield
    finally:
        undo()
