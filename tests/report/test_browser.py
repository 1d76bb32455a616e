"""The page in a headless Chromium: everything is drawn, nothing is said on the console, a legend toggles."""

import time

import pytest

from adjoined.report import write_report
from report.browser import CHROMIUM, DRIVER, chromium
from report.runs import write_benchmark, write_predictions, write_run

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver are not on the PATH; apt install chromium-driver",
)
# Of every plot: its size, and how many marks it holds.
PLOTS = """
return [...document.querySelectorAll(".plot")].map((p) => [
  p.id, p.clientWidth, p.clientHeight,
  p.querySelectorAll(".point, .js-line, .hm image, .heatmaplayer image").length]);
"""
# The middle of an entry of a legend, and of a button, in the window.
ENTRY = """
const plot = document.getElementById(arguments[0]);
plot.scrollIntoView({block: "center"});
const entry = [...plot.querySelectorAll(".legend .traces")].find((t) => t.textContent === arguments[1]);
const box = entry.querySelector(".legendtoggle").getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""
BUTTON = """
const plot = document.getElementById(arguments[0]);
plot.scrollIntoView({block: "center"});
const button = [...plot.querySelectorAll(arguments[1])].find((b) => b.textContent.startsWith(arguments[2]));
const box = button.getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""
VISIBLE = "return document.getElementById(arguments[0]).data.map((t) => t.visible)"
GROUND = "return getComputedStyle(document.body).backgroundColor"
INK = "return document.querySelector('.plot .xtick text').style.fill"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    write_run(folder, search_epochs=3, epochs=12)
    write_benchmark(folder)
    write_predictions(folder)
    return write_report([folder])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_everything_is_drawn(browser, page, width, scheme):
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.devtools("Emulation.setEmulatedMedia", features=[feature])
    browser.open(page)
    assert browser.console() == []
    assert browser.run("return document.documentElement.dataset.state") == "drawn"
    plots = browser.run(PLOTS)
    assert len(plots) == 15
    for key, wide, high, marks in plots:
        assert wide > 250, key
        assert high > 150, key
        assert marks > 0, key
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    dark = scheme == "dark"
    assert (browser.run(GROUND) == "rgb(20, 22, 24)") is dark
    assert (browser.run(INK) == "rgb(236, 236, 234)") is dark


def test_a_click_on_the_legend_toggles_a_series(browser, page):
    browser.devtools("Emulation.clearDeviceMetricsOverride")
    browser.open(page)
    key = "run-0-top1"
    for wanted in ("legendonly", True):
        browser.click(*browser.run(ENTRY, key, "small"))
        for _ in range(50):  # a click counts when no second one follows at once
            seen = browser.run(VISIBLE, key)
            if seen[1] == wanted:
                break
            time.sleep(0.1)
        assert seen[1] == wanted
        assert seen[0] != "legendonly"
        time.sleep(0.5)
    assert browser.console() == []


def test_a_gate_is_picked(browser, page):
    browser.open(page)
    key = "run-0-gate-history"
    browser.click(*browser.run(BUTTON, key, ".updatemenu-header", "blocks.0"))
    browser.click(*browser.run(BUTTON, key, ".updatemenu-dropdown-button", "blocks.2"))
    assert browser.run(VISIBLE, key) == [False] * 6 + [True] * 3


def test_the_theme_follows_the_system(browser, page):
    browser.open(page)
    for scheme, ink in (("dark", "rgb(236, 236, 234)"), ("light", "rgb(28, 29, 31)")):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.devtools("Emulation.setEmulatedMedia", features=[feature])
        for _ in range(100):
            if browser.run(INK) == ink:
                break
            time.sleep(0.1)
        assert browser.run(INK) == ink


def test_it_prints(browser, page):
    browser.open(page)
    printed = browser.devtools("Page.printToPDF")
    assert len(printed["data"]) > 50_000
    assert browser.console() == []
