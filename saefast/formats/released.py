"""SAEs that were published as one file of `torch.save` each, with a layout of their own. They are read, not written.

    Qwen Scope   layer7.sae.pt in SAE-Res-{model}-W{width}K-L0_{k}: W_enc [d_sae, d_in], W_dec [d_in, d_sae], b_enc, b_dec;
                 the k largest of W_enc x + b_enc. k stands in the name of the repository only.
    Goodfire     Llama-3.1-8B-Instruct-SAE-l19.pth, also DeepSeek-R1-...-SAE-l37.pt: encoder(_linear).weight [d_sae, d_in],
                 encoder(_linear).bias, decoder(_linear).weight [d_in, d_sae], decoder(_linear).bias; ReLU

Neither subtracts b_dec from the input. As SAELens 6.54 reads them.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.errors import InputError, check
from saefast.formats.common import Tensors, build, read_pickle
from saefast.formats.contents import Contents, Origin

NAME = "released"
FILES = re.compile(r"(layer(?P<layer>\d+)\.sae|(?P<model>.+)-SAE-l(?P<number>\d+))\.pth?")
QWEN = re.compile(r"SAE-Res-(?P<model>[^/]+)-W(?P<width>\d+)K-L0_(?P<k>\d+)")
OURS = ("W_enc", "b_enc", "W_dec", "b_dec")
LAYOUTS = {
    "Qwen Scope": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "Goodfire": (
        "encoder_linear.weight",
        "encoder_linear.bias",
        "decoder_linear.weight",
        "decoder_linear.bias",
    ),
    "Goodfire R1": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
}


def find(path: Path) -> bool:
    return path.is_file() and FILES.fullmatch(path.name) is not None


def layout(tensors: dict[str, Any]) -> str | None:
    """Which of the `LAYOUTS` has these names."""
    return next((kind for kind, names in LAYOUTS.items() if tensors.keys() == set(names)), None)


def read(path: Path) -> Contents:
    return of(Tensors(path, read_pickle(path)), path)


def of(found: Tensors, path: Path) -> Contents:
    """What the tensors of the file at `path` are."""
    kind, names = layout(found.left), " or ".join(", ".join(names) for names in LAYOUTS.values())
    if kind is None:
        raise InputError(f"{path}: expected the tensors {names}, got {', '.join(map(str, found.left))}")
    theirs = dict(zip(OURS, LAYOUTS[kind], strict=True))
    W_enc = found.take(theirs["W_enc"], (None, None))
    d_sae, d_in = W_enc.shape
    tensors: dict[str, Tensor] = {
        "W_enc": W_enc,
        "b_enc": found.take(theirs["b_enc"], (d_sae,)),
        "W_dec": found.take(theirs["W_dec"], (d_in, d_sae)).T.contiguous(),
        "b_dec": found.take(theirs["b_dec"], (d_in,)),
    }
    named = FILES.fullmatch(path.name)
    layer = (named["layer"] or named["number"]) if named else None
    metadata = {"model_name": named["model"] if named else None}
    options: dict[str, Any] = {"activation": "relu", "pre_bias": False}
    if kind == "Qwen Scope":
        model = QWEN.search(str(path.absolute()))
        want = "in a folder SAE-Res-{model}-W{width}K-L0_{k}, as on the Hub: k stands nowhere else"
        check(model is not None, f"{path}: k: expected the file of Qwen Scope {want}")
        assert model is not None
        width = int(model["width"]) * 1024
        check(d_sae == width, f"{path}: W_enc: expected {width} latents (W{model['width']}K), got {d_sae}")
        options |= {"activation": "topk", "k": int(model["k"])}
        metadata = {"model_name": f"Qwen/{model['model']}"}
    if layer is not None:
        metadata["hook_name"] = f"model.layers.{int(layer)}"
    return build(options, tensors, Origin(NAME, {"layout": kind}), path, metadata)
