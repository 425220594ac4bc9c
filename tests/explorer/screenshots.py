"""Pictures of an explorer's views for the documentation: python -m tests.explorer.screenshots FOLDER OUT."""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.explorer.test_browser import BROWSER, SOFTWARE_WEBGL

DESKTOP, PHONE = (1280, 800), (390, 844)
PICTURES = {  # name -> (address, view, size, color scheme, what to take: None is the whole window)
    "explorer_read": ("text=3&position=60", "read", DESKTOP, "light", None),
    "explorer_map": ("view=map&color=part&token=return", "map", DESKTOP, "light", None),
    "explorer_walk": ("view=walk&text=3&position=60", "walk", DESKTOP, "dark", None),
    "explorer_phone": ("text=3&position=60", "read", PHONE, "light", None),
    "explorer_token": ("text=3&position=60", "read", DESKTOP, "light", "#read :has(> .pair)"),  # in idea.png
}


def main(folder: str, out: str) -> None:
    page_file = Path(folder).resolve() / "index.html"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=SOFTWARE_WEBGL)
        for name, (address, view, (width, height), scheme, selector) in PICTURES.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, offline=True,
                device_scale_factor=2 if selector else 1,
            )  # fmt: skip
            page = context.new_page()
            page.goto(f"file://{page_file}#{address}")
            page.wait_for_selector(f"html[data-ready={view}]", state="attached")
            page.wait_for_timeout(1000)  # the frames that draw the maps
            path = Path(out) / f"{name}.png"
            (page.locator(selector) if selector else page).screenshot(path=path)
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
            context.close()
            print(f"{out}/{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
