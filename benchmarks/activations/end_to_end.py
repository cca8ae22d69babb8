"""Training end to end on SmolLM2-135M: KL, loss recovered and FVU on held-out text, before and after.

    python -m benchmarks.activations.end_to_end --start runs/demo --lr 3e-4     # go on from an SAE trained on activations
    python -m benchmarks.activations.end_to_end --lr 2e-3                       # begin with a fresh one
    python -m benchmarks.activations.end_to_end --help

Needs what `make demo` makes in data/ (and runs/demo). Prints one JSON line.
"""

import argparse
import json
import time

from saefast import SAE, SAEConfig, open_source
from saefast.activations.lm import PackedContexts, Texts, load_model
from saefast.interp.splice import evaluate_in_model
from saefast.train.end_to_end import EndToEnd, EndToEndConfig

HOOK, HELD_OUT = "model.layers.12", "data/heldout-corpus"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--start", help="run folder of the SAE to go on with; default: a fresh one")
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--lr", type=float, required=True)
    flags.add_argument("--loss", choices=["kl", "ce"], default="kl")
    flags.add_argument("--mse-coefficient", type=float, default=0.0)
    flags.add_argument("--contexts", type=int, default=4, help="per step")
    flags.add_argument("--context-length", type=int, default=128)
    flags.add_argument("--held-out-contexts", type=int, default=16, help="of 256 tokens")
    args = flags.parse_args()

    model, tokenizer = load_model("data/smollm2-135m")
    sae = SAE.from_pretrained(args.start) if args.start else SAE(SAEConfig(d_in=576, d_sae=4608, k=32))
    source = open_source(HELD_OUT)
    held_out = source.shard(0)["contexts"][: args.held_out_contexts].long().split(4)
    max_norm = source.index["notes"]["max_norm"]
    config = EndToEndConfig(lr=args.lr, loss=args.loss, mse_coefficient=args.mse_coefficient)
    training = EndToEnd(sae, model, HOOK, config, tokenizer.all_special_ids)
    contexts = PackedContexts(Texts("data/corpus.jsonl"), tokenizer, args.context_length, args.contexts)

    before = evaluate_in_model(sae, model, HOOK, held_out, max_norm)
    start = time.perf_counter()
    history = training.fit(contexts, args.steps)
    seconds = time.perf_counter() - start
    after = evaluate_in_model(sae, model, HOOK, held_out, max_norm)
    found = {
        "args": vars(args),
        "tokens": args.steps * args.contexts * args.context_length,
        "seconds": seconds,
    }
    for name, result in (("before", before), ("after", after)):
        found[name] = {key: round(value, 4) for key, value in result._asdict().items()}
    n = max(1, args.steps // 5)
    for name, part in (("first steps", history[:n]), ("last steps", history[-n:])):
        found[name] = {
            key: round(sum(getattr(m, key) for m in part) / n, 4) for key in ("kl", "ce", "fvu", "l0")
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
