"""One command from nothing to a dictionary of a real language model: SmolLM2-135M, real text, an SAE, its features.

    python examples/demo.py            everything lands in data/ and runs/demo
    python examples/demo.py --debian   the same in runs/demo-debian, on richer text from Debian's packages

The steps are the ones a user would type; each is printed before it runs. What is there already is not made again,
and an interrupted demo goes on where it stopped. The recipe was chosen by experiment: benchmarks/LOG.md.
"""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import corpus
import smollm2

from saefast import cli
from saefast.files import write_json
from saefast.interp.records import Records
from saefast.interp.strongest import features_text, strongest, total_energy
from saefast.interp.vocabulary import Vocabulary

DATA, RUN = Path("data"), Path("runs/demo")
HOOK = "model.layers.12"  # the residual stream in the middle of 30 blocks
# Most of the time is the language model's, so each activation is cached once and trained on 5.5 times.
TRAIN_TOKENS, HELDOUT_TOKENS = 120_000, 16_384
HELDOUT_START = 260_000  # the held-out text begins well after the last training token
CONTEXTS = 16  # of the evaluation inside the model
RECIPE = """--d-sae 4608 --k 32 --tokens 660000 --batch-size 512 --lr 4e-3 --betas 0.9 0.99
    --decay-fraction 0.95 --dead-feature-threshold 10000"""


def announce(command: str) -> list[str]:
    """Print the command as a user would type it; returns its words."""
    words = command.split()
    print("\n$ saefast", *words, flush=True)
    return words


def main() -> None:
    start = time.perf_counter()
    debian = "--debian" in sys.argv
    with ProcessPoolExecutor(
        1
    ) as other_core:  # the text is prepared while the model is downloaded and converted
        prepared = other_core.submit(corpus.prepare, DATA, debian)
        model = smollm2.prepare(DATA)
        text = prepared.result()
    acts, heldout = DATA / f"acts-{text.stem}", DATA / f"heldout-{text.stem}"
    run = RUN.with_name("demo-debian") if debian else RUN
    cache = f"cache {model} {text} --hook {HOOK} --out"
    if not _complete(heldout):
        cli.main(announce(f"{cache} {heldout} --tokens {HELDOUT_TOKENS} --skip-tokens {HELDOUT_START}"))
    if not _complete(acts):
        cli.main(announce(f"{cache} {acts} --tokens {TRAIN_TOKENS}"))
    cli.main(announce(f"train {acts} --out {run} {RECIPE} --seed 0 --checkpoint-every 200 --resume"))
    announce(f"evaluate {run} {heldout} --in-model --contexts {CONTEXTS}")
    figures = cli.Evaluate(run, heldout, in_model=True, contexts=CONTEXTS).result()
    cli.show(figures)
    write_json(run / "evaluation.json", figures)

    cli.main(announce(f"look {run} {acts} --ablate 10"))
    print("\nThe ten strongest features and where they are most active:")
    from transformers import AutoTokenizer

    tokenizer, records = AutoTokenizer.from_pretrained(model), Records(run / "records")
    report = features_text(strongest(records), Vocabulary(tokenizer), total_energy(records))
    (run / "features.txt").write_text(report + "\n")
    print(report)
    print(f"\nIn {run}: sae.safetensors, curves.png, metrics.jsonl, evaluation.json, features.txt, records.")
    print(f"Open {run / 'look/index.html'}: every latent, its text, what it does and a map.")
    print(f"This took {time.perf_counter() - start:.0f} s.")


def _complete(folder: Path) -> bool:
    index = folder / "index.json"
    return index.exists() and json.loads(index.read_text())["complete"]


if __name__ == "__main__":
    main()
