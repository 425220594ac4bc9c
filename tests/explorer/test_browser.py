"""The page in a real browser: Debian's Chromium, headless, from the file system and without a network."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from harmonic_gpt.data.prepare import prepare
from harmonic_gpt.data.tokenizer import load_tokenizer
from harmonic_gpt.explorer.build import explore
from harmonic_gpt.explorer.serve import make_server
from tests.explorer.written import read_data, unpacked

BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
VIEWS = ["read", "lens", "map", "walk", "verdict"]
SOFTWARE_WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium, or CHROMIUM=its path)"),
]


@pytest.fixture(scope="module")
def launch():
    """A function that starts a browser with some arguments."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'harmonic-gpt[dev]' brings playwright")
    with api.sync_playwright() as driver:
        started = []

        def start(*arguments: str):
            started.append(driver.chromium.launch(executable_path=BROWSER, args=list(arguments)))
            return started[-1]

        yield start
        for one in started:
            one.close()


@pytest.fixture(scope="module")
def browser(launch):
    return launch(*SOFTWARE_WEBGL)


class Visit:
    """A page of its own context, with what it complained of and what it asked for."""

    def __init__(self, browser, folder: Path | None, **options):
        options = {"viewport": {"width": 1400, "height": 900}, "offline": True, "color_scheme": "light"} | options
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.folder, self.complaints, self.requests = folder, [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str, view: str):
        self.page.goto("about:blank")
        self.page.goto(f"file://{self.folder}/index.html#{fragment}")
        self.ready(view)
        return self.page

    def ready(self, view: str):
        self.page.wait_for_selector(f"html[data-ready={view}]", state="attached")
        assert self.page.locator(f"#{view}").is_visible()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()


@pytest.fixture
def visit(browser, built):
    visits = []

    def make(folder=None, **options) -> Visit:
        visits.append(Visit(browser, folder or built[0], **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_opens_without_network_and_complaint(visit, scheme):
    page = visit(color_scheme=scheme)
    for view in VIEWS:
        page.open(f"view={view}", view)
    background = page.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(12, 17, 24)") == (scheme == "dark")
    assert page.complaints == []
    assert all(url.startswith(("file://", "data:", "about:", "blob:")) for url in page.requests)


def test_a_click_on_a_token_shows_its_predictions(visit, built):
    page = visit()
    page.open("text=2", "read")
    page.page.locator('.token[data-i="7"]').click()
    assert "position=8" in page.page.url
    text = read_data(built[0], "text-2")
    for m, card in enumerate(page.page.locator("#read .panel .card").all()):
        nats = float(unpacked(text["models"][m]["nats"])[6])
        rank = int(unpacked(text["models"][m]["label_rank"])[6])
        told = card.inner_text()
        assert f"surprise {nats:.3f} nats, rank {rank}" in told or f"surprise {nats:.2f} nats, rank {rank}" in told
        assert card.locator("tr.truth").count() == 1
        probability = float(unpacked(text["models"][m]["top_p"])[6, 0])
        assert page.page.evaluate("p => explorer.percent(p)", probability) in told
        score = float(unpacked(text["models"][m]["top_score"])[6, 0])
        assert f"{score:.3f}" in told or f"{score:.2f}" in told or f"{score:.1f}" in told
    assert page.complaints == []


def test_arrow_keys_go_through_the_text(visit):
    page = visit()
    page.open("text=1&position=9", "read")
    page.page.keyboard.press("ArrowRight")
    assert "position=10" in page.page.url
    for key, view in zip("2345", VIEWS[1:], strict=True):
        page.page.keyboard.press(key)
        page.ready(view)
    assert page.complaints == []


def test_a_search_selects_the_token_in_both_models(visit, built):
    page = visit()
    page.open("view=map", "map")
    page.page.keyboard.press("/")
    page.page.locator("#map input[type=search]").fill("river")
    page.page.keyboard.press("Enter")
    page.page.wait_for_function("location.hash.includes('token=river')")
    vocabulary = read_data(built[0], "vocabulary-a")
    token = vocabulary["tokens"].index(" river")
    for m, key in enumerate("ab"):
        nearest = unpacked(read_data(built[0], f"map-{key}")["nearest"])[token]
        listed = page.page.locator(f"#map .map-tables .card:nth-child({m + 1}) li button").all()
        shown = [item.evaluate("button => button.firstChild.data") for item in listed]
        assert shown == [page.page.evaluate("text => explorer.label(text)", vocabulary["tokens"][i]) for i in nearest]
    page.page.locator("#map .near button").first.click()
    assert "token=river" not in page.page.url
    assert page.complaints == []


def test_hovering_a_point_shows_the_token_in_both_models(visit, built):
    page = visit()
    page.open("view=map&map=pca", "map")
    panel = page.page.locator("#map .over").first
    x, y, token = page.page.evaluate(
        "() => { const panel = explorer.views.map.panels[0]; const [x, y] = panel.size().width"
        " ? [panel.size().width / 2, panel.size().height / 2] : [0, 0]; const token = panel.pick(x, y, 400);"
        " return [...panel.at(token), token]; }"
    )
    box = panel.bounding_box()
    page.page.mouse.move(box["x"] + x, box["y"] + y)
    expected = page.page.evaluate("token => explorer.label(explorer.tokenText(0, token))", token)
    for heading in page.page.locator("#map .map-tables h4 code").all():
        assert heading.evaluate("code => code.textContent") == expected
    assert page.page.locator("#map .map-tables h4").count() == 2


def test_hovering_a_cell_of_the_lens_shows_the_same_cell_of_the_other_model(visit, built):
    page = visit()
    page.open("view=lens&text=2&position=12", "lens")
    cell = page.page.locator("#lens .lens-model").nth(0).locator('td[data-t="11"][data-layer="1"]')
    cell.hover()
    linked = page.page.locator("#lens .lens-model").nth(1).locator("td.linked")
    assert linked.get_attribute("data-t") == "11"
    assert linked.get_attribute("data-layer") == "1"
    for m in range(2):
        agreement = float(unpacked(read_data(built[0], "text-2")["models"][m]["walk"]["agreement"])[1, 11])
        shown = page.page.evaluate("p => explorer.percent(p)", agreement)
        assert f"agreement {shown}" in page.text(f"#lens .panel .card:nth-child({m + 1})")
    cell.click()
    assert "position=13" in page.page.url


def test_a_deep_link(visit, built):
    page = visit()
    page.open("text=3&position=17&token=cat", "read")
    assert page.page.locator(".token.chosen").get_attribute("data-i") == "16"
    assert page.page.locator('#read .text-card[aria-current="true"] b').inner_text() == "3"
    page.page.keyboard.press("3")
    page.ready("map")
    assert "cat" in page.text("#map .map-tables h4 code")
    page.open("token=cat", "map")
    page.page.evaluate("location.hash = 'view=walk&text=2&position=5'")
    page.ready("walk")
    assert "5 / " in page.text("#cursor .at")
    assert page.complaints == []


def test_the_walk(visit, built):
    page = visit()
    page.open("view=walk&text=2&position=9", "walk")
    layers = page.page.locator("#walk .trail").first.locator("li")
    assert layers.count() == 3
    page.page.locator("#walk input[type=range]").fill("0")
    assert page.text("#layer-name") == "embeddings"
    score = float(unpacked(read_data(built[0], "text-2")["models"][0]["walk"]["label_score"])[0, 7])
    page.page.emulate_media(reduced_motion="reduce")
    page.page.keyboard.press(" ")
    assert page.text("#layer-name") == "after layer 1"
    shown = page.page.locator("#walk .plot").first.inner_html()
    assert any(f"{score:.{digits}f}" in shown for digits in (1, 2, 3))
    assert page.complaints == []


@pytest.mark.parametrize("view", VIEWS[:4])
def test_a_view_as_png(visit, view):
    page = visit()
    page.open(f"view={view}&token=cat", view)
    page.page.wait_for_timeout(300)  # the frame that draws the map
    colors, width = page.page.evaluate(
        "async () => { const canvas = await explorer.png.render(); const { data } = canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height); const seen = new Set();"
        " for (let i = 0; i < data.length; i += 4) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);"
        " return [seen.size, canvas.width]; }"
    )
    assert width > 1000
    assert colors > 50
    page.page.keyboard.press("p")
    page.page.wait_for_selector("#message.shown")
    assert page.text("#message").startswith(("Copied as PNG", "The browser does not give the clipboard"))
    assert page.complaints == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone(visit, view):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.open(f"view={view}", view)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_webgl_tables_work(launch, built):
    page = Visit(launch("--disable-3d-apis"), built[0])
    page.open("token=cat", "map")
    assert "no WebGL" in page.text("#map .no-webgl")
    assert page.page.locator("#map .near button").count() == 20
    page.open("view=walk", "walk")
    assert page.page.locator("#walk .plot svg").count() == 4
    assert page.complaints == []


def test_models_with_different_tokenizers(visit, pair, save_model, corpus, token_folder, tmp_path):
    other = save_model("other-standard", similarity="dot", normalization="softmax")
    tokenizer = prepare(str(corpus), tmp_path / "tokens", vocab_size=290, validation_share=0.2) / "tokenizer"
    load_tokenizer(tokenizer).save_pretrained(other)
    explore([str(pair[0]), str(other)], tmp_path / "out", data=str(token_folder), device="cpu", umap=False)
    page = visit(tmp_path / "out")
    page.open("", "read")
    assert "different tokenizers" in page.text("#read")
    page.open("token=cat", "map")
    assert [code.inner_text() for code in page.page.locator("#map h4 code").all()] == ["·cat", "·cat"]
    assert page.complaints == []


def test_a_folder_that_is_not_whole(visit, built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "broken")
    (folder / "data/text-2.js").unlink()
    page = visit(folder)
    page.open("text=1", "read")
    page.page.locator("#read .text-card").nth(1).click()
    page.page.wait_for_selector("#message.shown")
    assert "text-2.js is missing" in page.text("#message")


def test_a_typed_text_is_read(visit, built):
    folder, explored = built
    with make_server(folder, explored, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = visit(offline=False)
        page.page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.ready("read")
        page.page.locator("#read textarea").fill("The dog likes the house.")
        page.page.locator("#read form button").click()
        page.page.wait_for_selector(".token.next.chosen")
        assert "After the text" in page.text("#read .panel h3")
        assert page.page.locator("#read .panel .card tbody tr").count() == 20
        page.page.keyboard.press("4")
        page.ready("walk")
        page.page.keyboard.press("1")
        page.page.locator("#read textarea").fill("a")
        page.page.locator("#read form button").click()
        page.page.wait_for_selector("#message.shown")
        assert "at least 2 tokens" in page.text("#message")
        server.shutdown()
    assert [line for line in page.complaints if "400" not in line] == []
