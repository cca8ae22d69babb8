"""SAEDashboard's own runner and ours, on the same SAE, the same tokens and the same activations.

    .venv-peers/bin/python -m benchmarks.interp.sae_dashboard    writes benchmarks/results/cpu/sae_dashboard.json
    .venv-peers/bin/python -m benchmarks.interp.sae_dashboard --smoke    small, nothing is kept

Theirs is `NeuronpediaRunner.run` with its defaults (128 latents at a time, 32 prompts of 128 tokens in a pass) on the first
batches of latents; the seconds of a batch are those from one of its files to the next. Ours is `record`, `effects_of` and
`export_sae_dashboard` on all latents: from the same start to files of the same layout.

Neither runs the language model. SAEDashboard finds the activations in the files in which it keeps them itself after its first
batch (their reading is part of its time, as it is from its second batch on); ours reads a shard folder. What it needs of the
model besides is the unembedding, which it gets with the gain of the final norm in it, as TransformerLens has it.

Both are measured on two numbers of tokens, and a line through the two gives the seconds at SAEDashboard's default of 3.1
million tokens: its cost of a batch has a part that grows with the tokens (encoding, correlations, quantiles, sequences) and one
of the vocabulary; ours has one pass over all tokens, and files of each latent that do not grow once it has all of its
examples. A TopK SAE is encoded whole for every batch of
128; of JumpReLU (here the same weights with a threshold that leaves about as many active) only those 128, which is its best
case. It takes a TopK SAE only if that scales by the norms of the decoder's rows: here they are 1.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import write_result
from benchmarks.peers.runs import not_installed, stand_ins
from saefast import SAE, open_source
from saefast.activations.lm import load_model
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.formats import save
from saefast.interp.effects import effects_of
from saefast.interp.effects.direct_path import direct_path
from saefast.interp.exchange.sae_dashboard import export_sae_dashboard, read_sae_dashboard
from saefast.interp.records import RecordsConfig, record
from saefast.interp.records.batches import text_rows
from saefast.interp.vocabulary import Vocabulary, tokenizer_of

HOOK, PROMPT, AT_A_TIME = "blocks.12.hook_resid_post", 128, 128
DEFAULT = 24_576 * PROMPT  # tokens
WINDOWS = RecordsConfig(before=PROMPT - 1, after=PROMPT - 1)  # whole prompts, as theirs


def rows_and_tokens(folder: str, n: int) -> tuple[Tensor, Tensor]:
    """[n, d_in] fp32 and the ids [n] of their tokens; the places that the cache left out are closed up."""
    rows, tokens, found = [], [], 0
    for batch in text_rows(open_source(folder)):
        rows.append(batch.x.float())
        tokens.append(batch.contexts.flatten()[batch.slots].long())
        found += len(batch.x)
        if found >= n:
            return torch.cat(rows)[:n], torch.cat(tokens)[:n]
    raise SystemExit(f"{folder}: expected {n} tokens, it has {found}")


def first_latents(sae: SAE, n: int) -> SAE:
    tensors = {name: t[:n] if len(t) == sae.config.d_sae else t for name, t in sae.tensors.items()}
    made = SAE.of(replace(sae.config, d_sae=n), tensors)
    made.metadata = dict(sae.metadata)
    return made


def with_threshold(sae: SAE, x: Tensor) -> SAE:
    """JumpReLU of the same weights, with one threshold at which about k latents are active on a row."""
    params = sae.params
    pre = torch.nn.functional.linear(x[:1024] - params.b_dec, params.W_enc, params.b_enc)
    threshold = pre.flatten().sort(descending=True).values[len(pre) * (sae.config.k or 0)].clamp_min(1e-6)
    tensors = {name: tensor.clone() for name, tensor in sae.tensors.items()}
    tensors["threshold"] = torch.full_like(params.b_enc, float(threshold))
    made = SAE.of(replace(sae.config, activation="jumprelu", k=None), tensors)
    made.metadata = dict(sae.metadata)
    return made


def ours(sae: SAE, source: ShardSource, model: Any, vocabulary: Vocabulary, folder: Path) -> dict[str, float]:
    """Seconds of each part, for all latents."""
    seconds, last = {}, time.perf_counter()

    def done(name: str) -> None:
        nonlocal last
        seconds[name], last = time.perf_counter() - last, time.perf_counter()

    records = record(sae, source, folder / "records", WINDOWS)
    done("record")
    hook = str(sae.metadata["hook_name"])
    effects = effects_of(records, sae, model, source, hook=hook, n_vocab=len(vocabulary))
    done("effects")
    export_sae_dashboard(records, effects, vocabulary, folder / "ours", model_id="m", layer=12, sae_set="set")
    done("files")
    return seconds


def theirs(
    sae: SAE, x: Tensor, tokens: Tensor, model: Any, vocabulary: Vocabulary, folder: Path, n_batches: int
) -> list[float]:
    """Seconds of each batch of 128 latents, after a first one."""
    from sae_dashboard.neuronpedia.neuronpedia_runner import NeuronpediaRunner
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
    from sae_lens import SAE as TheirSAE

    save(sae, folder / "sae", "sae_lens")
    loaded = TheirSAE.load_from_disk(str(folder / "sae"), device="cpu")
    if sae.config.activation == "topk":
        loaded.cfg.rescale_acts_by_decoder_norm = True
    loaded.cfg.metadata["hook_name"] = HOOK
    config = NeuronpediaRunnerConfig(
        sae_set="set",
        sae_path="",
        outputs_dir=str(folder / "theirs"),
        n_prompts_total=len(tokens) // PROMPT,
        n_tokens_in_prompt=PROMPT,
        n_features_at_a_time=AT_A_TIME,
        end_batch=n_batches,
        sae_dtype="float32",
        sae_device="cpu",
    )
    for place in (folder / "theirs", folder / "cache"):
        place.mkdir()
    prompts = tokens.view(-1, PROMPT)
    torch.save(prompts, folder / "theirs" / f"tokens_{len(prompts)}.pt")
    for i, part in enumerate(x.view(-1, PROMPT, x.shape[1]).split(config.n_prompts_in_forward_pass)):
        torch.save({HOOK: part.clone()}, folder / "cache" / f"model_activations_{i}.pt")
    path = direct_path(model, str(sae.metadata["hook_name"]), sae.config.d_in)
    unembedding = torch.eye(sae.config.d_in)
    for norm in path.norms:
        unembedding = norm(unembedding)
    runner: Any = object.__new__(NeuronpediaRunner)  # its __init__ loads a model and text from the Hub
    runner.cfg, runner.sae, runner.hook_name = config, loaded, HOOK
    runner.model_id, runner.layer, runner.activations_store = "m", 12, None
    runner.cached_activations_dir = folder / "cache"
    runner.vocab_dict = dict(enumerate(vocabulary.strings))
    ids = SimpleNamespace(pad_token_id=-1, bos_token_id=-1, eos_token_id=-1)  # no token is left out
    runner.model = SimpleNamespace(
        W_U=unembedding @ path.unembedding.T,
        hook_dict={HOOK: None},
        cfg=SimpleNamespace(d_vocab=len(path.unembedding)),
        tokenizer=ids,
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        runner.run()
    ends = [(folder / "theirs" / f"batch-{i}.json").stat().st_mtime_ns / 1e9 for i in range(n_batches + 1)]
    return np.diff(ends).tolist()


def agreement(folder: Path) -> dict[str, int]:
    """Of the latents of their batches, those with our density and our largest activation, which they round to three places.

    The latter is that of the whole group: SAEDashboard shows no first token of a prompt, which it takes for a bos.
    """
    mine = {one["feature_index"]: one for one in read_sae_dashboard(folder / "ours")}
    same = n = 0
    for one in read_sae_dashboard(folder / "theirs"):
        our = mine[one["feature_index"]]
        their_top, our_top = (
            max((act["bin_max"] for act in some["activations"]), default=0.0) for some in (one, our)
        )
        close = abs(one["frac_nonzero"] - our["frac_nonzero"]) < 1.1e-5
        same, n = same + (close and abs(their_top - our_top) < 1e-3 + 1e-5 * our_top), n + 1
    return {"latents": n, "same": same}


def measured(
    sae: SAE, x: Tensor, tokens: Tensor, model: Any, vocabulary: Vocabulary, n_batches: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds for all latents, and what they were made from."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = ShardWriter(folder / "shards", x.shape[1], torch.float32)
        place = torch.arange(len(x), device="cpu")
        writer.append(x, tokens.view(-1, PROMPT).int(), place // PROMPT, place % PROMPT)
        writer.close()
        parts = ours(sae, ShardSource(folder / "shards"), model, vocabulary, folder)
        batches = theirs(sae, x, tokens, model, vocabulary, folder, n_batches)
        about = {
            "SAEDashboard, seconds of each batch of 128": [round(s, 3) for s in batches],
            "saefast, seconds for all latents": {part: round(s, 3) for part, s in parts.items()},
            "same density and maximum": agreement(folder),
        }
    return {"SAEDashboard": statistics.median(batches) * sae.config.d_sae / AT_A_TIME} | parts, about


def rates(seconds: dict[str, float], d_sae: int) -> dict[str, Any]:
    parts = dict(seconds)
    their = parts.pop("SAEDashboard")
    ours = {"records": parts["record"], "records, effects, files": sum(parts.values())}
    return {
        "latents a minute": {
            name: round(60 * d_sae / s, 1) for name, s in ({"SAEDashboard": their} | ours).items()
        },
        "times SAEDashboard": {name: round(their / s, 1) for name, s in ours.items()},
    }


def on_the_line(sizes: list[int], runs: list[dict[str, float]], n: int) -> dict[str, float]:
    """Seconds at n tokens, from those at two sizes; the files are as long at n as at the larger of these."""
    (a, b), (first, second) = sizes, runs
    found = {name: s + (second[name] - s) * (n - a) / (b - a) for name, s in first.items()}
    return found | {"files": second["files"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", default="runs/demo")
    parser.add_argument("shards", nargs="?", default="data/acts-corpus")
    parser.add_argument("model", nargs="?", default="data/smollm2-135m")
    parser.add_argument("--tokens", type=int, nargs=2, default=[65_536, 196_608])
    parser.add_argument("--batches", type=int, default=2, help="of 128 latents, timed after one that is not")
    parser.add_argument("--smoke", action="store_true", help="small, nothing is written")
    args = parser.parse_args()
    sizes, n_batches = ([1024, 2048], 1) if args.smoke else (args.tokens, args.batches)
    x, tokens = rows_and_tokens(args.shards, max(sizes))
    topk = SAE.from_pretrained(args.run)
    topk = first_latents(topk, 256) if args.smoke else topk
    model, _ = load_model(args.model, "cpu")
    vocabulary, _ = tokenizer_of(args.model)
    found: dict[str, Any] = {}
    os.environ["TQDM_DISABLE"] = "1"
    with stand_ins(*not_installed("wandb")):
        measured(topk, x[:PROMPT], tokens[:PROMPT], model, vocabulary, 1)  # imports, threads
        for kind in ("topk", "jumprelu"):
            sae = topk if kind == "topk" else with_threshold(topk, x)
            runs, found[kind] = [], {}
            for n in sizes:
                seconds, about = measured(sae, x[:n], tokens[:n], model, vocabulary, n_batches)
                runs.append(seconds)
                found[kind][f"{n:,} tokens"] = rates(seconds, sae.config.d_sae) | about
            if not args.smoke:
                line = rates(on_the_line(sizes, runs, DEFAULT), sae.config.d_sae)
                found[kind][f"{DEFAULT:,} tokens, on a line through these"] = line
            print(kind, json.dumps(found[kind], indent=1), flush=True)
    if not args.smoke:
        about = {"d_in": x.shape[1], "d_sae": topk.config.d_sae, "k": topk.config.k}
        versions = {name: version(name) for name in ("sae-dashboard", "sae-lens")}
        print(write_result("sae_dashboard", {"shape": about | versions, "results": found}))


if __name__ == "__main__":
    main()
