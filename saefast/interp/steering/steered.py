"""A model in which latents are edited: set, pinned, added, scaled.

    x  ->  x + decode(edited code) - decode(code)

The reconstruction of x is replaced by that of the edited code and the error of the SAE, x - SAE(x), is kept ("Scaling
Monosemanticity", and pinning in "Towards Monosemanticity"). The decoder is linear, so the difference is that of the
edited latents alone:

    set    (value - act) * W_dec[latent]
    add    value * W_dec[latent]
    scale  (value - 1) * act * W_dec[latent]

in the units of the activations, with the normalisation of the SAE undone.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from saefast.activations.inputs import Text, vocabulary_size
from saefast.activations.lm import n_positions
from saefast.errors import check
from saefast.interp.places import Places
from saefast.interp.steering.edits import Edit, checked_edits
from saefast.sae import SAE
from saefast.sae.inference import in_data_units

ROWS_AT_ONCE = 1024  # of the pre-activations
CACHES = (
    "cache",
    "past_key_values",
    "cache_params",
)  # how models of Hugging Face call the keys and values they keep
PROBE = 7  # tokens of the contexts with which the rows of the hook points are found


@contextmanager
def steered(
    model: nn.Module,
    sae: SAE,
    hook: str | Sequence[str],
    edits: Sequence[Edit],
    *,
    max_norm: float | Sequence[float] = float("inf"),
    drop_ids: Iterable[int] = (),
    output_hook: str | Sequence[str] | None = None,
    prompt_length: int | None = None,
    directions: Tensor | None = None,
) -> Iterator[None]:
    """While it lasts, every pass of `model` in this thread has these latents edited, also those in which it generates a
    text token by token from the keys and values that it keeps. Several may be inside of each other: the inner one
    reads what the outer one made. The hooks go when it ends, in whatever way.

    Rows that the SAE was not trained on stay as they are: padding (`attention_mask` 0, on either side), special tokens
    (`drop_ids`) and attention sinks, whose norm is above `max_norm`. `saefast.interp.places.Cached` knows these of a
    cache or of records. Activations in another dtype than the SAE's are converted, and converted back.

    Args:
        model: a causal language model of Hugging Face, or one that is called alike: model(input_ids, ...). Two passes of
            two short contexts tell first which row of the activations is which token.
        hook, output_hook, max_norm: as in `saefast.interp.splice.evaluate_in_model`. A transcoder is read at its input and
            changes its output. A crosscoder reads a later place than the first one that it changes, so that only "add"
            can be done with it.
        prompt_length: of the contexts, padding included, for edits at "prompt" or "generated". Default: a pass from position
            0 on is the prompt, and one that goes on from kept keys and values is generated.
        directions: [edits, d_out] in place of the rows of W_dec, for a control (`random_directions`).

    Raises:
        InputError: latents that there are not, two edits of one; hook points that the model does not have, or of another
            width than the SAE; a crosscoder, for edits that need its code; while it lasts: a pass of a part of the model.
    """
    edits = checked_edits(edits, sae.config.d_sae)
    check(
        prompt_length is None or prompt_length > 0, f"prompt_length: expected at least 1, got {prompt_length}"
    )
    n_words, length = vocabulary_size(model) or 2, min(PROBE, n_positions(model) or PROBE)
    first = torch.arange(2 * length, dtype=torch.int64, device="cpu").view(2, length) % n_words
    places = Places([sae], model, hook, output_hook, first)
    places.set_limits(max_norm, drop_ids)
    if not edits:
        yield
        return
    steering = _Steering(places, sae, edits, prompt_length, directions)
    with ExitStack() as stack:
        stack.callback(places.model.register_forward_pre_hook(steering.begin, with_kwargs=True).remove)
        stack.callback(places.model.register_forward_hook(steering.end, always_call=True).remove)
        for place, point in enumerate(places.points):
            stack.enter_context(point.attached(partial(steering.put, place), every_pass=True))
        yield


class _Steering:
    """The edits of one SAE in the passes of one model."""

    def __init__(
        self,
        places: Places,
        sae: SAE,
        edits: list[Edit],
        prompt_length: int | None,
        directions: Tensor | None,
    ) -> None:
        self.places, self.sae, self.edits, self.prompt_length = places, sae, edits, prompt_length
        self.first_output = len(places.points) - len(places.outputs)
        self.reads_code = any(edit.how != "add" for edit in edits)
        config = sae.config
        per_row = config.input_norm in ("layer_norm", "constant_norm")
        whole = self.first_output + 1 >= places.n_inputs  # all is read when the first output comes
        want = "an SAE that is read at one place, or edits that add: the code of a crosscoder is known only when its first place is past"
        check(whole or not (self.reads_code or per_row), f"edits: expected {want}")
        latents = [edit.latent for edit in edits]
        rows = sae.W_dec.detach()[latents] if directions is None else directions
        ok = rows.shape == (len(edits), config.width_out)
        check(ok, f"directions: expected [{len(edits)}, {config.width_out}], got {list(rows.shape)}")
        self.directions = rows.to(sae.b_dec)
        self.thread = get_ident()
        self.text: Text | None = None
        self.end_of_pass = 0

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass begins: what are its tokens, and where are they in their contexts?"""
        if get_ident() != self.thread:
            return
        names = inspect.signature(module.forward).parameters
        given = dict(zip(names, args, strict=False)) | kwargs
        found = (given.get(name) for name in ("input_ids", "inputs_embeds"))
        tokens = next((value for value in found if isinstance(value, Tensor)), None)
        if tokens is None:
            tokens = next((value for value in given.values() if isinstance(value, Tensor)), None)
        ok = tokens is not None and tokens.ndim >= 2
        check(ok, "model: expected token ids [contexts, length] or their embeddings in each pass, got none")
        assert tokens is not None
        length = tokens.shape[1]
        mask: Any = given.get("attention_mask")
        is_mask = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length
        past = max(
            mask.shape[1] - length if is_mask else 0, *(self._kept(given.get(name)) for name in CACHES)
        )
        self.end_of_pass = past + length
        is_real = mask[:, -length:] != 0 if is_mask else None
        self.text = Text("input_ids", tokens, is_real, length)
        position = torch.arange(past, past + length, dtype=torch.int64, device="cpu")
        begins = torch.full((length,), past == 0, dtype=torch.bool, device="cpu")
        self.is_prompt = begins if self.prompt_length is None else position < self.prompt_length
        self.parts: list[Tensor] = []
        self.change: Tensor | None = None

    def _kept(self, cache: Any) -> int:
        """Of how many tokens there are keys and values, or states, already."""
        if not hasattr(cache, "get_seq_length"):
            return 0
        try:
            return int(cache.get_seq_length())
        except ValueError:  # states, which do not tell how many they are of
            return self.end_of_pass if cache.has_previous_state() else 0

    def end(self, *_: Any) -> None:
        if get_ident() == self.thread:
            self.text = None

    def put(self, place: int, activations: Tensor) -> Tensor | None:
        """What takes the place of the activations at a hook point; None: they stay."""
        text = self.text
        check(
            text is not None,
            "model: expected a pass of the whole model that is steered, got one of a part of it",
        )
        assert text is not None
        self.parts.append(self.places.reader.part(place, activations, text))
        if place < self.first_output:
            return None
        stays = self.places.stays(self.parts, text)
        part, before = self.parts[-1].clone(), place - self.first_output
        if self.change is None:
            self.change = self._change()
        widths = self.places.widths[self.first_output :]
        change = self.change.split(widths, dim=-1)[before].to(part.device)
        chosen = ~stays & change.any(dim=-1)  # the others keep their bits
        part[chosen] = (part[chosen].to(change.dtype) + change[chosen]).to(part.dtype)
        return self.places.reader.layouts[place].put_back(part, activations)

    def _change(self) -> Tensor:
        """decode(edited code) - decode(code), [m, L, H, width_out]."""
        config, like = self.sae.config, self.sae.b_dec
        shape = self.parts[0].shape[:-1]
        if not (self.reads_code or config.input_norm in ("layer_norm", "constant_norm")):
            x = like.new_zeros(shape.numel(), 0)
        else:
            parts = self.parts[: self.places.n_inputs]
            x = torch.cat([part.to(like) for part in parts], dim=-1).flatten(0, -2)
        factors = self._factors(x) * self._acts_here(shape)
        return in_data_units(config, factors @ self.directions, x).unflatten(0, shape)

    def _acts_here(self, shape: torch.Size) -> Tensor:
        """[m * L * H, edits]: 1 where an edit is to be made."""
        of = {"all": torch.ones_like(self.is_prompt), "prompt": self.is_prompt, "generated": ~self.is_prompt}
        here = torch.stack([of[edit.at] for edit in self.edits], dim=1).to(self.sae.b_dec)  # [L, edits]
        return here[None, :, None].expand(*shape, -1).reshape(-1, len(self.edits))

    def _factors(self, x: Tensor) -> Tensor:
        """By how much the activation of each edited latent changes, [rows, edits]."""
        values = self.sae.b_dec.new_tensor([edit.value for edit in self.edits])
        adds = values.expand(len(x), -1)
        if not self.reads_code:
            return adds
        acts = torch.cat([self._acts(rows) for rows in x.split(ROWS_AT_ONCE)])
        hows = [edit.how for edit in self.edits]
        columns = {"set": values - acts, "add": adds, "scale": (values - 1) * acts}
        return torch.stack([columns[how][:, i] for i, how in enumerate(hows)], dim=1)

    def _acts(self, x: Tensor) -> Tensor:
        """Of the edited latents, [rows, edits]."""
        acts, indices = self.sae.encode(x)
        return torch.stack([(acts * (indices == edit.latent)).sum(dim=1) for edit in self.edits], dim=1)
