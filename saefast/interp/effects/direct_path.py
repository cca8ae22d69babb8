"""The direct path from a hook point to the logits, as a linear map: output map, final norm, unembedding.

"Towards Monosemanticity": direction * W_down * pi * L * W_unembed, with pi the removal of the mean (LayerNorm) and L the
gain of the norm. The norm divides by a scale, too, which differs from token to token: it is left out.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saefast.activations.hooks import HookPoint, unwrapped
from saefast.errors import InputError, check

# The last linear map of attention and MLP: what it gives is added to the residual stream.
OUTPUT_MAPS = (
    "o_proj",
    "out_proj",
    "down_proj",
    "c_proj",
    "dense",
    "dense_4h_to_h",
    "fc2",
    "fc_out",
    "wo",
    "w2",
)
ACTIVATIONS = ("act", "act_fn", "activation_fn")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm", "ln_out")
# Gemma 2 and 3 normalise what attention and MLP give before it is added.
NORMS_AFTER = {
    "self_attn": ("post_attention_layernorm", "pre_feedforward_layernorm"),
    "mlp": ("post_feedforward_layernorm", "pre_feedforward_layernorm"),
}


class Norm(NamedTuple):
    """x -> gain * (x - its mean, if `centred`), without the division by the scale and without the bias."""

    gain: Tensor  # [d] fp32
    centred: bool

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows - rows.mean(dim=1, keepdim=True) if self.centred else rows
        return rows * self.gain


class DirectPath(NamedTuple):
    """From rows at a hook point [n, width] to logits [n, V]."""

    output_map: Tensor | None  # [d, width]
    norms: list[Norm]  # of Gemma's blocks, if there is one, and the final one
    unembedding: Tensor  # [V, d]

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows if self.output_map is None else rows @ self.output_map.T
        for norm in self.norms:
            rows = norm(rows)
        return rows @ self.unembedding.T


def direct_path(
    model: nn.Module,
    hook: str,
    width: int,
    norm: str | nn.Module | None = None,
    unembedding: str | nn.Module | None = None,
) -> DirectPath:
    """Of a causal language model of Hugging Face, or one with modules of the same names.

    Args:
        hook: a block or its input (the residual stream), its attention or MLP, or the input of the last linear map of these.
        width: of the rows there.
        norm: the final norm, or its path; default: that beside the blocks in which the hook point is.
        unembedding: the linear map to logits, or its path; default: `model.get_output_embeddings()`.

    Raises:
        InputError: there is no direct path from the hook point, or a part of it is not found or of another width.
    """
    model = unwrapped(model)
    HookPoint(model, hook)  # refuses unknown names
    weight = _unembedding(model, unembedding)
    d = weight.shape[1]
    owner, block, inside = _place(model, hook)
    final = measured(_final_norm(model, owner, norm), d)
    output_map, norms = _into_residual(block, inside, hook, d)
    got = d if output_map is None else output_map.shape[1]
    check(width == got, f"hook: expected {hook!r} of width {width} as the decoder, the model has {got} there")
    return DirectPath(output_map, [*norms, final], weight)


def _place(model: nn.Module, hook: str) -> tuple[nn.Module, nn.Module, str]:
    """What has the list of blocks, the block, and the rest of the path, with its ":in"."""
    path, colon, side = hook.partition(":")
    module, names = model, path.split(".")
    for depth, name in enumerate(names):
        owner, module = module, getattr(module, name)
        if isinstance(module, nn.ModuleList) and depth + 1 < len(names):
            rest = ".".join(names[depth + 2 :]) + colon + side
            return owner, module[int(names[depth + 1])], rest
    raise InputError(f"hook: expected a place in a list of blocks (model.layers.12, ...), got {hook!r}")


def _into_residual(block: nn.Module, inside: str, hook: str, d: int) -> tuple[Tensor | None, list[Norm]]:
    """The map and the norm through which what is there is added to the residual stream."""
    if inside in ("", ":in"):
        return None, []
    path, _, side = inside.partition(":")
    branch, _, last = path.rpartition(".")
    module, modules = block.get_submodule(path), dict(block.named_modules())
    post_norms = {name for name, _ in NORMS_AFTER.values()}
    if (
        not (branch or side)
        and last in post_norms
        and {*post_norms, "pre_feedforward_layernorm"} <= {*modules}
    ):
        return None, []
    norms = [
        measured(modules[after], d)
        for name, (after, other) in NORMS_AFTER.items()
        if path.split(".")[0] == name and after in modules and other in modules
    ]
    if side and last in OUTPUT_MAPS:
        return _linear(module, hook), norms
    if not side and last in ACTIVATIONS and not any("gate" in name for name in modules):
        beside = [f"{branch}.{name}" if branch else name for name in OUTPUT_MAPS]
        found = [modules[name] for name in beside if name in modules]
        if len(found) == 1:
            return _linear(found[0], hook), norms
    is_part = any(True for _ in module.children())
    is_branch = not branch and is_part and not _is_norm(module)
    if not side and (last in OUTPUT_MAPS or is_branch):
        return None, norms
    want = "the residual stream, an attention, an MLP, or the input of its last linear map"
    raise InputError(f"hook: expected {want}, from which there is a direct path to the logits, got {hook!r}")


def _linear(module: nn.Module, hook: str) -> Tensor:
    """The matrix [out, in] of nn.Linear, or of GPT-2's Conv1D, which keeps it as [in, out]."""
    weight = getattr(module, "weight", None)
    ok = isinstance(weight, Tensor) and weight.ndim == 2
    check(ok, f"hook: expected a linear map behind {hook!r}, got {type(module).__name__}")
    assert isinstance(weight, Tensor)
    weight = weight.detach().float()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _named(model: nn.Module, given: str | nn.Module, name: str) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    modules = dict(model.named_modules(remove_duplicate=False))
    check(given in modules, f"{name}: expected a module or its path in the model, got {given!r}")
    return modules[given]


def _final_norm(model: nn.Module, owner: nn.Module, given: str | nn.Module | None) -> nn.Module:
    if given is not None:
        return _named(model, given, "norm")
    beside = dict(owner.named_children())
    found = [beside[name] for name in FINAL_NORMS if name in beside and _is_norm(beside[name])]
    want = f"one of {', '.join(FINAL_NORMS)} beside the blocks, or the argument"
    check(len(found) == 1, f"norm: expected {want}, got {len(found)} among {', '.join(beside)}")
    return found[0]


def _unembedding(model: nn.Module, given: str | nn.Module | None) -> Tensor:
    if given is None:
        get = getattr(model, "get_output_embeddings", lambda: None)
        module = get()
        want = "a model with get_output_embeddings() (AutoModelForCausalLM), or the argument"
        check(module is not None, f"unembedding: expected {want}, got {type(model).__name__}")
    else:
        module = _named(model, given, "unembedding")
    weight = getattr(module, "weight", None)
    ok = isinstance(weight, Tensor) and weight.ndim == 2
    check(ok, f"unembedding: expected a linear map to logits, got {type(module).__name__}")
    assert isinstance(weight, Tensor)
    return weight.detach().float()


@torch.no_grad()
def measured(module: nn.Module, d: int) -> Norm:
    """What a norm does to a direction, seen from its outputs: some classes keep their gain less 1 (Gemma), others none.

    Raises:
        InputError: it takes other widths, or does something else than RMSNorm or LayerNorm.
    """
    norm = copy.deepcopy(module).float()
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))
    x = torch.ones(3, d, dtype=torch.float32, device=device)
    x[1, 1::2] = -1  # neither zeros nor a mean, or nearly none
    x[2] = torch.arange(1, d + 1, dtype=torch.float32, device=device).cos() + 0.1
    x *= 1000  # beside which eps is nothing
    try:
        ones, signs, others = norm(x)
        bias = norm(torch.zeros_like(x))[0]
    except (RuntimeError, TypeError, ValueError) as error:
        name = type(module).__name__
        raise InputError(f"norm: expected one of width {d}, got {name}: {str(error)[:200]}") from None
    centred = d > 1 and bool((ones - bias).abs().amax() < 1e-2 * (signs - bias).abs().amax())

    def plain(row: Tensor) -> Tensor:
        row = row.double() - (row.double().mean() if centred else 0)
        return row / row.square().mean().sqrt()

    gain = (signs - bias) / plain(x[1])
    fits = torch.allclose(gain * plain(x[2]), (others - bias).double(), rtol=1e-3, atol=1e-3)
    check(
        fits, f"norm: expected RMSNorm or LayerNorm, got {type(module).__name__}, which does something else"
    )
    return Norm(gain.float(), centred)
