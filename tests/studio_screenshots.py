"""`python -m tests.studio_screenshots`: draw with the miniature, and write the README's two pictures of the page.

docs/studio.png is a desk's window and docs/studio-phone.png a phone's, both with a palette that keeps them small.
"""

import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageColor

from tests.live_studio import run_chromium, run_live_studio, run_miniature
from tilemix.colors.chart import load_colors
from tilemix.system.project import ROOT

DESK = {"width": 1280, "height": 1250}
DESK_WIDTH = 1000  # in the README
PHONE = {"width": 390, "height": 844}
FLAT_COLORS = 80
MOST_BYTES = 300_000
PATIENCE = 300_000  # milliseconds
STEPS = "25"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, run_chromium() as browser:
        folder = Path(name)
        with run_miniature(folder / "cog") as cog, run_live_studio(folder / "studio", cog) as address:
            page = browser.new_page(viewport=DESK, locale="en-US")
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.click(".more summary")
            for field, value in {"width": "768", "height": "768", "num_inference_steps": STEPS}.items():
                page.fill(f"#{field}", value)
            page.click(".more summary")
            page.fill("#seed", "7")
            page.click("#generate")
            page.wait_for_selector("[data-picture]")
            settle(page)
            write(page.screenshot(), ROOT / "docs" / "studio.png", width=DESK_WIDTH)

            result = page.get_attribute("article", "data-result")
            phone = browser.new_page(viewport=PHONE, is_mobile=True, locale="de-DE", color_scheme="dark")
            phone.goto(f"{address}/?from={result}")
            settle(phone)
            write(phone.screenshot(), ROOT / "docs" / "studio-phone.png", width=PHONE["width"])


def settle(page) -> None:
    """Wait for pictures and moving things; begin at the top."""
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_load_state("networkidle")
    page.mouse.move(2, 2)
    page.wait_for_timeout(1000)


def make_palette(image: Image.Image) -> Image.Image:
    """256 colors: the chart's, the page's most frequent ones exactly, and the rest by median cut."""
    chart = [ImageColor.getrgb(color.as_seen) for color in load_colors()]
    flat = [
        color for _, color in sorted(image.getcolors(image.width * image.height), reverse=True)[:FLAT_COLORS]
    ]
    values = [value for color in (*chart, *flat) for value in color]
    left = 256 - len(values) // 3
    palette = Image.new("P", (1, 1))
    palette.putpalette(values + image.quantize(left).getpalette()[: 3 * left])
    return palette


def write(picture: bytes, path: Path, *, width: int) -> None:
    image = Image.open(BytesIO(picture)).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image = image.quantize(palette=make_palette(image), dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {image.width} x {image.height}, {size / 1000:.0f} kB")  # noqa: T201  a program of its own
    if size >= MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, expected less than {MOST_BYTES}")


if __name__ == "__main__":
    main()
