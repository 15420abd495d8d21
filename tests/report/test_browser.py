"""The page in a real browser, headless: on a desktop and a phone, in light, dark and print.

Skipped where there is no Chromium with its driver.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from autotune.records import Result
from autotune.report.page import render
from tests.report.results import confirm

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="chromium and chromedriver are not installed")

QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
VIEWS = {
    "desktop light": (1280, 900, "light", ""),
    "desktop dark": (1280, 900, "dark", ""),
    "phone light": (360, 740, "light", ""),
    "phone dark": (360, 740, "dark", ""),
    "print": (718, 1000, "dark", "print"),
}
"""Width, height, preferred colours, medium. A sheet of A4 less the style sheet's margins is about 718 pixels wide."""

LONG = "a-very-long-model-name-that-goes-on-and-on-without-a-single-space-" * 3
NAMES = ("confirmed", "hybrid", "two_gpus", "crowded")

LOOK = """
const problems = [];
const texts = svg => [...svg.querySelectorAll('text')];
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width)
  problems.push(`the page is ${document.documentElement.scrollWidth} wide, ${width} are there`);
for (const svg of document.querySelectorAll('svg')) {
  const name = svg.getAttribute('aria-label').slice(0, 60), frame = svg.viewBox.baseVal;
  const boxes = texts(svg).map(text => [text.textContent, text.getBBox()]);
  for (const [words, box] of boxes)
    if (Math.min(box.x, box.y, frame.width - box.x - box.width, frame.height - box.y - box.height) < -0.5)
      problems.push(`${name}: "${words}" is cut off`);
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    // The box of a line of text has room above and below its letters.
    if (a.x < b.x + b.width && b.x < a.x + a.width && a.y + 3 < b.y + b.height - 3 && b.y + 3 < a.y + a.height - 3)
      problems.push(`${name}: "${boxes[i][0]}" lies on "${boxes[j][0]}"`);
  }
  for (const text of texts(svg)) {
    const size = parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / frame.width;
    if (size < arguments[0]) problems.push(`${name}: "${text.textContent}" is ${size.toFixed(1)} pixels high`);
  }
}
if (arguments[1])
  for (const box of document.querySelectorAll('.scroll'))
    if (box.scrollWidth > box.clientWidth + 1) problems.push(`cut off: ${box.textContent.trim().slice(0, 60)}`);
return problems;
"""
"""Problems with what is where; told the least size of text in pixels, and whether nothing can be scrolled."""

CONTRAST = """
const channels = colour => {
  const parts = colour.match(/[0-9.]+/g).map(Number);
  return {rgb: parts.slice(0, 3), alpha: parts.length > 3 ? parts[3] : 1};
};
const luminance = rgb => {
  const [r, g, b] = rgb.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const found = channels(getComputedStyle(at).backgroundColor);
    if (found.alpha === 1) return found.rgb;
  }
  return [255, 255, 255];
};
const least = new Map();
for (const element of document.body.querySelectorAll('*')) {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
  if (element.tagName === 'title' || !element.checkVisibility()) continue;
  const style = getComputedStyle(element), drawn = element.tagName === 'text';
  const [a, b] = [channels(drawn ? style.fill : style.color).rgb, behind(element)].map(luminance);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const kind = `${element.tagName} ${element.getAttribute('class') || ''}`;
  least.set(kind, Math.min(ratio, least.get(kind) ?? 99));
}
return [...least].map(([kind, ratio]) => ({kind, ratio}));
"""
"""The least contrast of each kind of text with what is behind it, as WCAG 2.2 defines it."""


@dataclass(frozen=True)
class Browser:
    """A browser with one page after the other."""

    driver: Any
    folder: Path

    def open(self, name: str) -> None:
        """Load a page anew."""
        self.driver.get((self.folder / f"{name}.html").as_uri())

    def look(self, view: str) -> None:
        """Show the page as in one of ``VIEWS``."""
        width, height, scheme, media = VIEWS[view]
        mobile = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        colours = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": colours})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def events(self, method: str) -> list[dict[str, Any]]:
        """What the browser did since last asked."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [message["params"] for message in messages if message["method"] == method]


def crowded(result: Result) -> Result:
    """Long names, many trials, all of them failures but two."""
    found = confirm(result)
    assert found.confirmation is not None
    first, chosen, *others = found.confirmation.trials
    trials = (first, chosen, *(others * 30))
    return replace(
        found,
        model=replace(found.model, name=LONG),
        host=replace(found.host, label=LONG, cpu=replace(found.host.cpu, name=LONG)),
        warnings=(LONG,),
        confirmation=replace(found.confirmation, trials=trials, engine=LONG),
    )


@pytest.fixture(scope="module")
def browser(
    tmp_path_factory: pytest.TempPathFactory, confirmed: Result, hybrid: Result, two_gpus: Result
) -> Iterator[Browser]:
    """One browser for all tests, and the pages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    folder = tmp_path_factory.mktemp("pages")
    for name, result in zip(NAMES, (confirmed, hybrid, two_gpus, crowded(confirmed)), strict=True):
        (folder / f"{name}.html").write_text(render(result, LONG), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER, log_output=os.devnull)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver, folder)
    finally:
        driver.quit()


@pytest.fixture(params=NAMES)
def page(browser: Browser, request: pytest.FixtureRequest) -> Browser:
    """The browser with a page open."""
    browser.open(request.param)
    return browser


def in_each_view(browser: Browser, find: Callable[[str], list[str]]) -> list[str]:
    """What is found, each with the view that it was found in."""
    found = []
    for view in VIEWS:
        browser.look(view)
        found += [f"{view}: {problem}" for problem in find(view)]
    return found


def test_a_page_is_silent_and_fetches_nothing(browser: Browser) -> None:
    """Nothing on the console, and no request but for the page itself, whatever is unfolded."""
    browser.events("Network.requestWillBeSent")
    for name in NAMES:
        browser.open(name)
        browser.run("document.querySelectorAll('details').forEach(found => found.open = true)")
        address = (browser.folder / f"{name}.html").as_uri()
        # Not what the browser loads for its own first tab.
        events = [event for event in browser.events("Network.requestWillBeSent") if event["documentURL"] == address]
        assert {event["request"]["url"] for event in events} - {"data:,"} == {address}
    assert browser.driver.get_log("browser") == []


def test_everything_has_its_place(page: Browser) -> None:
    """The page is no wider than the window; no text in a chart is cut off, lies on another or is too small to read."""

    def problems(view: str) -> list[str]:
        least = 6.5 if view == "print" else 10.0
        found: list[str] = page.run(LOOK, least, view == "print")
        return found

    assert in_each_view(page, problems) == []


def test_unfolded_tables_do_not_widen_the_page(page: Browser) -> None:
    """They scroll by themselves."""
    page.run("document.querySelectorAll('details').forEach(found => found.open = true)")
    page.look("phone light")
    assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.run("return [...document.querySelectorAll('figure table')].some(found => found.offsetWidth > 360)")


def test_the_held_out_errors_fit_a_phone(browser: Browser) -> None:
    """All columns are seen without scrolling."""
    browser.open("confirmed")
    browser.look("phone light")
    script = "const box = document.querySelector('#trust .scroll'); return box.scrollWidth - box.clientWidth"
    assert browser.run(script) <= 0


def test_all_text_can_be_told_from_what_is_behind_it(page: Browser) -> None:
    """Contrast of at least 4.5 to 1 in light and dark, and what is printed is dark on white."""

    def faint(view: str) -> list[str]:
        found = page.run(CONTRAST)
        assert len(found) > 20, "hardly any text was found"
        return [f"{each['kind']} {each['ratio']:.2f}" for each in found if each["ratio"] < 4.5]

    assert in_each_view(page, faint) == []
    page.look("print")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_colours_follow_the_reader(page: Browser) -> None:
    """Dark where that is preferred, the drawings too."""
    shades = []
    for view in ("desktop light", "desktop dark"):
        page.look(view)
        script = "return [document.body, document.querySelector('svg .curve')].map(e => getComputedStyle(e))"
        shades.append(page.run(f"{script}.map(style => style.backgroundColor + style.stroke)"))
    assert all(light != dark for light, dark in zip(*shades, strict=True))
