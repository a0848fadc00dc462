"""The page in a browser: what people do with it, and that it asks nobody for anything."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import documents
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from lora_tools.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="SKIPPED FOR WANT OF A BROWSER: the page was not opened;"
    " apt-get install chromium chromium-driver",
)

CASES = {
    "one": documents.document(["encoder.layer.0.attention.self.query"], rank=8),
    "thousand": documents.full(documents.diffusion(), rank=32),
}

PAGES = {name: cache(partial(render, document)) for name, document in CASES.items()}

CENTRE = """
const host = document.getElementById("heat");
host.scrollIntoView({block: "center"});
const box = host.getBoundingClientRect();
const at = host._fullLayout;
return [
  box.left + at._size.l + at.xaxis.d2p(arguments[0]) - host.scrollLeft,
  box.top + at._size.t + at.yaxis.d2p(arguments[1]),
].map(Math.round);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


SAID = """
const lines = document.querySelectorAll("#heat .hoverlayer .hovertext .line");
return [...lines].map((line) => line.textContent).join("\\n");
"""


class Page:
    """An opened page, with the words for what people do on it."""

    def __init__(self, browser: webdriver.Chrome, path: Path, html: str) -> None:
        self.browser, self.url = browser, path.as_uri()
        path.write_text(html, encoding="utf-8")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(self.url)

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def title(self, name: str) -> Any:
        buttons = self.all("#table thead button")
        return next(button for button in buttons if button.text.strip(" ↑↓") == name)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column that are shown, from above."""
        at = [th.text.strip(" ↑↓") for th in self.all("#table thead th")].index(name)
        return self.run(
            "return [...document.getElementById('table').tBodies[0].rows]"
            ".filter((row) => row.checkVisibility())"
            f".map((row) => (row.cells[{at}].querySelector('code') ?? row.cells[{at}]).innerText)"
        )

    def hover(self, row: int, column: int) -> str:
        """Point at a cell of the heat map and return what appears."""
        wait = WebDriverWait(self.browser, 10)
        self.move(2, 2)
        wait.until(lambda _: not self.run(SAID))
        self.move(*self.run(CENTRE, row, column))
        return wait.until(lambda _: self.run(SAID))

    def move(self, x: int, y: int) -> None:
        pointer = ActionBuilder(self.browser)
        pointer.pointer_action.move_to_location(x, y)
        pointer.perform()

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self) -> dict[str, str]:
        """Return whatever the page tried to load since it was opened, and why that was refused."""
        events = (json.loads(line["message"]) for line in self.browser.get_log("performance"))
        messages = [(event["message"]["method"], event["message"]["params"]) for event in events]
        refused = {
            params["requestId"]: params.get("blockedReason", "")
            for method, params in messages
            if method == "Network.loadingFailed"
        }
        return {
            params["request"]["url"]: refused.get(params["requestId"], "")
            for method, params in messages
            if method == "Network.requestWillBeSent"
            and not params["request"]["url"].startswith("data:")
        }


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, browser: webdriver.Chrome, tmp_path: Path
) -> Iterator[tuple[Page, documents.Document]]:
    """Each page, which must have had no errors and sent no requests when the test is over."""
    document = CASES[request.param]
    page = Page(browser, tmp_path / "page.html", PAGES[request.param]())
    yield page, document
    assert page.errors() == []
    assert page.requests() == {page.url: ""}


def test_the_table_sorts_numbers_as_numbers(case: tuple[Page, documents.Document]) -> None:
    page, document = case
    norms = {m["module"]: m["spectrum"]["norm"] for m in document["modules"]}
    known = sorted((name for name in norms if norms[name] is not None), key=norms.__getitem__)
    unknown = [name for name in norms if norms[name] is None]
    page.title("‖ΔW‖").click()
    assert page.column("module") == known[::-1] + unknown
    page.title("‖ΔW‖").click()
    assert page.column("module") == known + unknown
    assert page.find("th[aria-sort=ascending]").text.startswith("‖ΔW‖")


def test_the_table_is_sorted_by_keyboard(case: tuple[Page, documents.Document]) -> None:
    page, document = case
    page.title("parameters").send_keys(Keys.ENTER)
    largest = max(module["params"] for module in document["modules"])
    assert page.column("parameters")[0] == f"{largest:,}"


def test_the_table_is_filtered_by_words_and_kind(case: tuple[Page, documents.Document]) -> None:
    page, _ = case
    names = page.column("module")
    page.find("#filter").send_keys("ATT 0 q")
    fitting = [name for name in names if all(word in name for word in ("att", "0", "q"))]
    assert fitting
    assert page.column("module") == fitting
    shown = len(fitting) if len(fitting) == len(names) else f"{len(fitting)} of {len(names):,}"
    assert page.find("#count").text == f"{shown} module{'s' * (len(names) != 1)}"
    page.find("#filter").send_keys(" no such module")
    assert page.column("module") == []
    assert page.find("#nothing").is_displayed()
    page.find("#filter").clear()
    page.find("#filter").send_keys(Keys.SPACE)
    assert page.column("module") == names


def test_the_table_is_filtered_by_kind_and_remark(browser: Any, tmp_path: Path) -> None:
    document = CASES["thousand"]
    page = Page(browser, tmp_path / "page.html", render(document))
    modules = document["modules"]
    Select(page.find("#kind")).select_by_visible_text("convolution")
    kinds = {m["module"] for m in modules if m["kind"] == "convolution"}
    assert set(page.column("module")) == kinds
    Select(page.find("#kind")).select_by_visible_text("all")
    Select(page.find("#flag")).select_by_visible_text("not finite")
    spoiled = [m["module"] for m in modules if m["spectrum"]["state"] == "not finite"]
    assert page.column("module") == spoiled
    assert len(spoiled) == 1


def test_a_cell_tells_its_value_in_each_metric(case: tuple[Page, documents.Document]) -> None:
    page, document = case
    module = next(m for m in document["modules"] if "to_q" in m["module"] or "query" in m["module"])
    found = page.run(
        "const data = JSON.parse(document.getElementById('data').textContent);"
        "const {row, column} = data.modules.find((m) => m.name === arguments[0]);"
        "return [row, column];",
        module["module"],
    )
    spectrum = module["spectrum"]
    kept = sum(s * s for s in spectrum["sigma"][: document["suggestion"]["rank_after"]])
    expected = {
        "‖ΔW‖": spectrum["norm"],
        "stable rank": spectrum["stable_rank"],
        "rank for 99 % of the energy": spectrum["energy_ranks"]["0.99"],
        "rank": module["rank"],
        "energy kept at rank …": 100 * kept / spectrum["norm"] ** 2,
    }
    for metric, value in expected.items():
        Select(page.find("#metric")).select_by_visible_text(metric)
        name, stated = page.hover(*found).split("\n")
        assert name == module["module"]
        number = stated.rpartition(": ")[2].removesuffix(" %").replace(",", "")
        assert float(number) == pytest.approx(value, rel=5e-3), stated


def test_a_click_on_a_cell_shows_the_module_in_the_table(
    case: tuple[Page, documents.Document],
) -> None:
    page, document = case
    first = "return document.getElementById('heat').data[0].z.findIndex((r) => r[0] !== null)"
    name = page.hover(0, page.run(first)).split("\n")[0]
    pointer = ActionBuilder(page.browser)
    pointer.pointer_action.click()
    pointer.perform()
    WebDriverWait(page.browser, 10).until(lambda _: page.find("#filter").get_property("value"))
    assert name in page.column("module")
    assert len(page.column("module")) < max(2, len(document["modules"]) / 10)


def test_the_theme_changes_the_page_and_its_plots(case: tuple[Page, documents.Document]) -> None:
    page, _ = case

    def colours() -> list[str]:
        return page.run(
            "const of = (s, key) => getComputedStyle(document.querySelector(s))[key];"
            "return [of('body', 'backgroundColor'), of('#heat .ytick text', 'fill'),"
            " of('#spectra .ytick text', 'fill'), of('#shrink .xtick text', 'fill')];"
        )

    before = colours()
    page.find("#theme").click()
    after = colours()
    assert all(x != y for x, y in zip(before, after, strict=True))
    page.find("#theme").click()
    assert colours() == before


def test_the_theme_is_that_of_the_system_at_first(browser: Any, tmp_path: Path) -> None:
    grounds = []
    for theme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        page = Page(browser, tmp_path / "page.html", PAGES["one"]())
        ground = (
            "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
        )
        grounds.append(page.run(ground))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert min(grounds[0]) > 200
    assert max(grounds[1]) < 60


def test_spectra_are_chosen_and_scaled(case: tuple[Page, documents.Document]) -> None:
    page, document = case

    def top() -> float:
        return page.run(
            "return Math.max(0, ...document.getElementById('spectra').data.flatMap((t) => t.y))"
        )

    assert top() == 1
    page.find("[data-spectra=absolute]").click()
    shown = page.all("#groups button[aria-pressed=true]")
    names = [chip.text for chip in shown]
    largest = max(
        module["spectrum"]["sigma_max"] or 0
        for module in document["modules"]
        if any(module["module"].endswith(f".{name}") for name in names)
    )
    assert top() == pytest.approx(largest, rel=1e-3)
    for chip in shown:
        chip.click()
    assert top() == 0
    assert page.find("#spectra-note").text == "Choose a projection."


def test_the_shrink_curve_is_over_ranks_or_sizes(case: tuple[Page, documents.Document]) -> None:
    page, document = case
    drawn = "return document.getElementById('shrink').data.map((t) => [t.x, t.y])"
    rows = document["ranks"]
    uniform, allocated = page.run(drawn)
    assert uniform[0] == [row["rank_after"] for row in rows]
    assert uniform[1] == pytest.approx([row["optimal_error"] for row in rows], rel=1e-4)
    assert allocated[1] == pytest.approx([row["allocated_error"] for row in rows], rel=1e-4)
    page.find("[data-shrink=bytes_after]").click()
    assert page.run(drawn)[0][0] == [row["bytes_after"] for row in rows]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", CASES)
def test_nothing_hangs_out_of_a_narrow_page(
    name: str, width: int, browser: Any, tmp_path: Path
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page = Page(browser, tmp_path / "page.html", PAGES[name]())
        room = page.run("return document.documentElement.clientWidth")
        assert width - 20 < room == page.run("return document.documentElement.scrollWidth")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_inspection_of_headers_alone_is_shown(browser: Any, tmp_path: Path) -> None:
    document = documents.document(documents.language(4), spectrum=False)
    page = Page(browser, tmp_path / "page.html", render(document))
    assert "rank: 16" in page.hover(1, 2)
    assert page.errors() == []


def test_colours_follow_the_logarithm_of_norms_that_lie_far_apart(
    browser: Any, tmp_path: Path
) -> None:
    document = documents.document(documents.language(4), odd=True)
    for n, module in enumerate(document["modules"]):
        if module["spectrum"]["norm"]:
            module["spectrum"]["norm"] = 10.0 ** (n % 5 - 3)
    page = Page(browser, tmp_path / "page.html", render(document))
    assert "logarithm" in page.find("#heat-note").text
    ticks = [tick.text for tick in page.all("#heat .cbaxis text, #heat .colorbar text")]
    assert ticks == ["0.001", "0.01", "0.1", "1", "10"]
    assert page.errors() == []


def test_an_empty_inspection_is_shown(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "page.html", render(documents.document([], spectrum=False)))
    assert "no modules" in page.find("main").text
    assert page.errors() == []


def test_names_are_text_wherever_they_are_shown(browser: Any, tmp_path: Path) -> None:
    names = [f"{documents.HOSTILE}.{n}.{documents.HOSTILE}" for n in range(3)]
    document = documents.full([*names, "__proto__.0.constructor", "<b>.0.<a href='javascript:1'>x"])
    page = Page(browser, tmp_path / "page.html", render(document))
    assert names[0] in page.column("module")
    assert page.hover(0, 0).startswith(names[0][:40])
    assert page.all("img, b script, a") == []
    assert page.run("return window.pwned") is None
    assert page.find("#groups button").text == documents.HOSTILE
    assert page.errors() == []


def test_what_slips_in_neither_runs_nor_calls_out(browser: Any, tmp_path: Path) -> None:
    slipped = "<script>window.pwned = 1</script><img src='https://example.invalid/x.png'>"
    html = PAGES["one"]().replace("</main>", f"{slipped}</main>")
    page = Page(browser, tmp_path / "page.html", html)
    assert page.run("return window.pwned") is None
    asked = page.browser.execute_async_script(
        "const done = arguments[0];"
        "fetch('https://example.invalid/').then(() => done('sent'), (e) => done(e.name));"
    )
    assert asked == "TypeError"
    refused = [error for error in page.errors() if "Content Security Policy" in error]
    assert len(refused) >= 3
    tried = page.requests()
    assert tried.pop(page.url) == ""
    assert tried["https://example.invalid/x.png"] == "csp"
    assert set(tried.values()) == {"csp"}


def test_the_page_can_be_printed(case: tuple[Page, documents.Document]) -> None:
    page, _ = case
    printed = page.browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 20_000
