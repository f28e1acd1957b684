"""Writes the README's moving picture: the page that `dlmjax sample --trace` writes, photographed step by step in a browser.

python docs/site/picture.py runs/quickstart/trace.html docs/figures/denoising.gif

Requires Chromium (or Chrome; `--browser`) and Pillow, which comes with matplotlib. Nothing else of the project uses it.
"""

import argparse
import json
import pathlib
import re
import subprocess
import tempfile

from PIL import Image

# Moves the slider of the page, as a hand does, when everything else has been drawn.
MOVE = '<script>{{ const s = document.getElementById("slider"); s.value = {step}; s.dispatchEvent(new Event("input")); }}</script></body>'


def photographs(page: str, steps: list[int], browser: str, size: tuple[int, int]) -> list[Image.Image]:
    """The page in a window of `size` pixels at each of `steps`."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "page.html"), pathlib.Path(folder, "page.png")
        for step in steps:
            source.write_text(page.replace("</body>", MOVE.format(step=step)), encoding="utf-8")
            window = f"--window-size={size[0]},{size[1]}"
            flags = ["--headless", "--no-sandbox", "--hide-scrollbars", window, f"--screenshot={target}"]
            subprocess.run([browser, *flags, source.as_uri()], check=True, capture_output=True, timeout=60)
            with Image.open(target) as picture:
                pictures.append(picture.convert("RGB").quantize(64, dither=Image.Dither.NONE))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=pathlib.Path, help="page written by dlmjax sample --trace")
    parser.add_argument("output", type=pathlib.Path, help="file of the picture, .gif")
    parser.add_argument("--every", type=int, default=4, help="steps between two pictures (4)")
    parser.add_argument("--size", type=int, nargs=2, default=(820, 390), help="width and height, pixels (820 390)")
    parser.add_argument("--browser", default="chromium", help="command of the browser (chromium)")
    flags = parser.parse_args()
    page = flags.trace.read_text(encoding="utf-8")
    trace = json.loads(re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL).group(1))
    last = len(trace["changes"])
    steps = [*range(0, last, flags.every), last]
    first, *others = photographs(page, steps, flags.browser, tuple(flags.size))
    durations = [900, *(220 for _ in steps[1:-1]), 4000]  # milliseconds
    first.save(flags.output, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main()
