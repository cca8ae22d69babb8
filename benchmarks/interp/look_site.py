"""What a site of `saefast look` costs: seconds to write it, bytes per latent, and how fast it is in headless Chromium.

    python -m benchmarks.interp.look_site [RECORDS TOKENIZER]   into benchmarks/results/cpu/look_site.json
    python -m benchmarks.interp.look_site --smoke               tiny, nothing is kept

Sizes are of synthetic records of 4,608 and 100,000 latents with as many examples as `RecordsConfig` asks for (each window from
a text of 51,200 random tokens, which compress worse than text), and of the given real ones. Times in the browser are medians
of 7, from the file system, at 1280 x 800: the list from the start of the load, a latent from the click to its page, a frame
while the list is scrolled 500 pixels in each, and a search through the strongest examples of all latents.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS
from saefast.interp.effects import Effects
from saefast.interp.look import write_site
from saefast.interp.records import Records
from tests.helpers import chromium, look_records

LATENT = """(async () => {
  const start = performance.now();
  location.hash = "#latent/%d";
  while (!performance.getEntriesByName("shown #latent/%d").length) await new Promise(requestAnimationFrame);
  return performance.now() - start;
})()"""
SCROLL = """(async () => {
  const view = document.querySelector(".scroller"), times = [];
  let last = performance.now();
  for (let i = 0; i < 60; i++) {
    view.scrollTop += 500;
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - last);
    last = performance.now();
  }
  return times;
})()"""


def measured(records: Records, vocabulary: Any, out: Path, effects: Effects | None = None) -> dict[str, Any]:
    start = time.perf_counter()
    page = write_site(records, out, vocabulary, effects)
    seconds = time.perf_counter() - start
    sizes = {path.stem: path.stat().st_size for path in (out / "data").glob("*.js")}

    def total(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    n = records.d_sae
    found: dict[str, Any] = {
        "latents": n,
        "seconds to write": round(seconds, 2),
        "bytes": sum(sizes.values()),
    }
    found["bytes per latent"] = {
        "page": round(total("latents-") / n),
        "list": round(total("head") / n, 1),
        "search": round(total("search-") / n),
    }
    found["bytes of texts and vocabulary"] = total("text-") + total("vocabulary")
    return found | (in_browser(page, n) if chromium.installed() else {})


def in_browser(page: Path, n_latents: int) -> dict[str, Any]:
    lists, latents = [], []
    with chromium.Browser() as browser:
        for _ in range(7):
            browser.open(page.as_uri())
            lists.append(browser.run("performance.getEntriesByName('list')[0].startTime"))
        for i in range(7):
            latent = (2 * i + 1) * n_latents // 14
            latents.append(browser.run(LATENT % (latent, latent)))
        browser.go("#list")
        frames = browser.run(SCROLL)
        start = time.perf_counter()
        browser.go("#list?q=no%20such%20text")
        browser.until("document.querySelector('.summary').textContent.includes('searched all')", 120)
        searched = time.perf_counter() - start
    times = {"list": lists, "a latent": latents, "a frame of scrolling": frames}
    middle = {
        f"ms to {name}" if name != "a frame of scrolling" else "ms per frame": round(
            statistics.median(some), 1
        )
        for name, some in times.items()
    }
    return middle | {"ms at most to a latent": round(max(latents), 1), "s to search all": round(searched, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("records", nargs="*", help="a folder of records and of their tokenizer")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    vocabulary = look_records.Tokens([f" word{i}".encode() for i in range(5000)])
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.records:
            from transformers import AutoTokenizer

            from saefast.interp.vocabulary import Vocabulary

            records = Records(args.records[0])
            own = Vocabulary(AutoTokenizer.from_pretrained(args.records[1]))
            result["real"] = measured(records, own, folder / "real", Effects.load(records.folder))
        for n in (600,) if args.smoke else (4608, 100_000):
            records = look_records.many(folder / f"records-{n}", vocabulary, n)
            result[f"synthetic, {n}"] = measured(records, vocabulary, folder / f"site-{n}")
    text = json.dumps(result, indent=2)
    print(text)
    if not args.smoke:
        (RESULTS / "cpu/look_site.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
