"""Pictures of a site, as docs/look.png was made: 1280 x 800, the light theme, the page of one latent.

python -m tests.interp.look.screenshot runs/demo/look docs/look.png --view '#latent/17'
"""

import argparse
from pathlib import Path

from tests.helpers.chromium import Browser


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("site", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--view", default="#list")
    parser.add_argument("--scheme", default="light", choices=["light", "dark"])
    parser.add_argument("--phone", action="store_true", help="360 x 740, two pixels for one")
    args = parser.parse_args()
    with Browser(1280, 800) as browser:
        browser.media(args.scheme)
        if args.phone:
            browser.size(360, 740, phone=True, ratio=2)
        browser.open((args.site / "index.html").absolute().as_uri() + args.view)
        browser.run("new Promise((done) => setTimeout(done, 500))")
        browser.screenshot(args.out)
        if browser.problems:
            raise SystemExit("\n".join(browser.problems))


if __name__ == "__main__":
    main()
