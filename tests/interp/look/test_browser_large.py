"""100,000 latents in a real browser: the list within a second, a latent within 200 ms, scrolling and searching without a stop."""

import statistics

import pytest

from saefast.interp.look import write_site
from tests.helpers import chromium, look_records

pytestmark = pytest.mark.skipif(
    chromium.installed() is None, reason="needs Chromium (apt-get install chromium)"
)


@pytest.mark.slow
def test_a_hundred_thousand_latents_stay_fluid(tmp_path):
    vocabulary = look_records.Tokens([f" word{i}".encode() for i in range(5000)])
    records = look_records.many(tmp_path / "records", vocabulary, 100_000)
    site = write_site(records, tmp_path / "site", vocabulary)
    with chromium.Browser() as page:
        paints, latents = [], []
        for _ in range(5):
            page.open(site.as_uri())
            paints.append(page.run("performance.getEntriesByName('list')[0].startTime"))
        for row in range(777, 100_000, 9973):
            script = "(async () => { const start = performance.now(); location.hash = '#latent/%d'; while (!performance.getEntriesByName('shown #latent/%d').length) await new Promise(requestAnimationFrame); return performance.now() - start; })()"
            latents.append(page.run(script % (row, row)))
        page.go("#list")
        frames = page.run("""(async () => { const view = document.querySelector(".scroller"), times = []; let last = performance.now();
            for (let i = 0; i < 60; i++) { view.scrollTop += 500; await new Promise(requestAnimationFrame); const now = performance.now(); times.push(now - last); last = now; }
            return times; })()""")
        page.go("#list?q=word77%20word")
        page.until("document.querySelector('.summary').textContent.includes('searched all')", 60)
        assert page.problems == []
    figures = {
        "list ms": statistics.median(paints),
        "latent ms": statistics.median(latents),
        "frame ms": statistics.median(frames),
    }
    print(figures, max(latents), max(frames))
    assert figures["list ms"] < 1000 and figures["latent ms"] < 200 and figures["frame ms"] < 50
