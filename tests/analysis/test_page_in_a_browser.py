"""The page of a replay in a real browser: nothing to complain about, at both widths, and every control by keyboard."""

import pytest

from tests.analysis.browser import BROWSER, browser
from tests.analysis.replays import COUNT, replay, write_harvest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser, google-chrome or chrome here"),
]

WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from dps.analysis.write import write_several
    from tests.analysis.evaluations import write_evaluation
    from tests.analysis.test_report import write_report

    folder = tmp_path_factory.mktemp("pages")
    stores = write_harvest(folder / "stores")
    replay(stores, folder / "one")
    replay(stores, folder / "two", controllers={})
    write_several([folder / "one", folder / "two"], folder)
    write_report([write_evaluation(folder / "evaluation")], folder)
    return {
        "replay": folder / "one" / "replay.html",
        "replays": folder / "replays.html",
        "evaluation": folder / "report.html",
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def shown(page, files):
    page.open(files["replay"])
    yield page
    assert page.complaints == []


def tab_to(page, selector, most=60):
    """Press Tab until an element has the focus, as someone without a mouse does."""
    for _ in range(most):
        page.press("Tab")
        if page.js(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"Tab does not come to {selector}")


EVERY = "document.querySelector('.presets button').click()"
"""Shows every curve."""


def attribute(page, name, of="document.activeElement"):
    return page.js(f"{of}.getAttribute({name!r})")


@pytest.mark.parametrize("name", ["replay", "replays", "evaluation"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_no_complaints_no_requests_no_sideways_scrolling(page, files, name, width, dark):
    page.open(files[name], width=width, dark=dark, mobile=width < 500)
    assert page.complaints == []
    assert page.requests == [files[name].resolve().as_uri()]
    assert page.js("document.documentElement.scrollWidth") == width
    # Nothing stands out of the page, but for what scrolls inside a box of its own.
    outside = """[...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, .static, figure > svg, pre")
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.js(outside) == []
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 17, 22)" if dark else "rgb(246, 247, 249)")
    assert page.js("getComputedStyle(document.body).color") == ("rgb(230, 233, 237)" if dark else "rgb(31, 35, 40)")


def test_the_browser_hears_of_errors(page, files, tmp_path):
    """What the other tests rely on: a script that fails, and one that the page's policy forbids, is complained of."""
    broken = tmp_path / "broken.html"
    broken.write_text("<script>document.querySelector('#none').focus()</script>")
    page.open(broken)
    assert any("null" in complaint for complaint in page.complaints)
    changed = tmp_path / "changed.html"
    changed.write_text(files["replay"].read_text(encoding="utf-8").replace('"use strict";', '"use strict" ;'))
    page.open(changed)
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_the_theme_is_switched_by_keyboard(shown):
    light = shown.js("getComputedStyle(document.body).backgroundColor")
    tab_to(shown, "[data-theme-toggle]", most=1)
    assert attribute(shown, "aria-label") == "Switch to dark colours"
    shown.press("Enter")
    assert shown.js("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)" != light
    assert attribute(shown, "aria-label") == "Switch to light colours"
    shown.press(" ")
    assert shown.js("getComputedStyle(document.body).backgroundColor") == light


def test_the_cost_is_switched_by_keyboard(shown):
    title = "[...document.querySelectorAll('.plot text')].map(t => t.textContent).join(' ')"
    path = "document.querySelector('.plot .line').getAttribute('d')"
    assert "generated tokens per question" in shown.js(title)
    before = shown.js(path)
    tab_to(shown, ".switches button[aria-pressed=false]")
    assert shown.js("document.activeElement.textContent") == "time"
    shown.press(" ")
    assert attribute(shown, "aria-pressed") == "true"
    assert shown.js("document.querySelectorAll('.switches [aria-pressed=true]').length") == 1
    assert "calibrated seconds per question" in shown.js(title)
    assert shown.js(path) != before


def test_a_curve_is_walked_along_by_keyboard(shown):
    tab_to(shown, ".curve[aria-label=gbdt]")
    assert (attribute(shown, "role"), attribute(shown, "tabindex")) == ("slider", "0")
    tip = "document.querySelector('.tip').innerText"
    assert "operating point" in shown.js(tip)
    assert "operating point" in attribute(shown, "aria-valuetext")
    shown.press("Home")
    assert attribute(shown, "aria-valuenow") == "1"
    assert "mean k 2.00" in shown.js(tip)
    shown.press("ArrowRight", 2)
    assert attribute(shown, "aria-valuenow") == "3"
    text = shown.js(tip)
    assert text.startswith("gbdt\n")
    for part in (" % [", "threshold ", " tokens, ", "mean k "):
        assert part in text
    shown.press("ArrowLeft")
    assert attribute(shown, "aria-valuenow") == "2"
    shown.press("End")
    assert attribute(shown, "aria-valuenow") == attribute(shown, "aria-valuemax")
    assert "mean k 8.00" in shown.js(tip)
    shown.press("Enter")
    assert "operating point" in shown.js(tip)
    assert shown.js("document.querySelector('.cursor').getAttribute('visibility')") == "visible"
    shown.press("Escape")
    assert shown.js("document.querySelector('.tip').hidden")


def test_every_curve_can_be_reached_and_speaks(shown):
    names = []
    shown.js(EVERY)
    tab_to(shown, ".curve")
    while shown.js("document.activeElement.matches('.curve')"):
        names.append(attribute(shown, "aria-label"))
        assert " % [" in attribute(shown, "aria-valuetext")
        assert shown.js("document.activeElement.classList.contains('active')")
        shown.press("Tab")
    assert names == shown.js("JSON.parse(document.getElementById('curves').textContent).policies.map(p => p.name)")


def test_a_name_switches_its_curve(shown):
    curve = "[...document.querySelectorAll('.curve')].find(c => c.getAttribute('aria-label') === 'oracle')"
    line = "document.querySelector('.curve[aria-label=gbdt] .line').getAttribute('d')"
    shown.js(EVERY)
    before = shown.js(line)
    tab_to(shown, ".legend button", most=200)
    for _ in range(100):
        if shown.js("document.activeElement.textContent") == "oracle":
            break
        shown.press("Tab")
    shown.press("Enter")
    assert attribute(shown, "aria-pressed") == "false"
    assert shown.js(f"getComputedStyle({curve}).display") == "none"
    shown.press(" ")
    assert attribute(shown, "aria-pressed") == "true"
    assert shown.js(f"getComputedStyle({curve}).display") != "none"
    assert shown.js(line) == before


def test_power_sampling_alone_has_the_room_of_the_figure(shown):
    visible = "[...document.querySelectorAll('.curve')].filter(c => c.style.display === '').map(c => c.ariaLabel)"
    line = "document.querySelector('.curve[aria-label=gbdt] .line').getBoundingClientRect().width"
    first = shown.js(visible)
    shown.js(EVERY)
    every, before = shown.js(visible), shown.js(line)
    assert len(first) == 8 < len(every)  # it begins with what decides
    tab_to(shown, ".presets button:nth-of-type(2)", most=len(every) + 20)
    shown.press("Enter")
    cheap = [name for name in every if name.endswith(")")]
    assert shown.js(visible) == [name for name in every if name not in cheap]
    assert shown.js(line) > 1.2 * before
    assert shown.js("document.querySelectorAll('.legend [aria-pressed=false]').length") == len(cheap)
    shown.press("Tab")
    shown.press(" ")
    assert shown.js(visible) == cheap
    shown.js(EVERY)
    assert (shown.js(visible), shown.js(line)) == (every, before)
    shown.js("document.querySelector('.presets button:last-of-type').click()")
    assert shown.js(visible) == first


@pytest.mark.parametrize("width", WIDTHS)
def test_pointing_at_a_point_says_what_it_is(page, files, width):
    page.open(files["replay"], width=width, mobile=width < 500)
    page.js("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    place = """(() => { const marks = [...document.querySelectorAll(".curve[aria-label='fixed (plain)'] .mark")];
      const box = marks[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"""
    page.mouse("mouseMoved", *page.js(place))
    text = page.js("document.querySelector('.tip').innerText")
    assert text.startswith("fixed (plain)\n")
    assert "\nk = 1\n" in text
    inside = """(() => { const tip = document.querySelector('.tip').getBoundingClientRect();
      return tip.left >= 0 && tip.right <= innerWidth })()"""
    assert page.js(inside)
    page.mouse("mouseMoved", 5, 5)
    assert page.js("document.querySelector('.tip').hidden")
    page.tap(*page.js(place))
    assert page.js("document.querySelector('.tip').innerText") == text
    corner = "(() => { const box = document.querySelector('.plot').getBoundingClientRect(); return [box.x, box.y] })()"
    page.tap(*(value + 3 for value in page.js(corner)))
    assert page.js("document.querySelector('.tip').hidden")
    assert page.complaints == []


def test_focus_can_be_seen_on_every_control(shown):
    shown.press("Tab")
    seen = set()
    for _ in range(60):
        state = shown.js("""(() => { const e = document.activeElement, s = getComputedStyle(e);
          return [e.tagName + (e.id || e.className.baseVal || e.textContent.slice(0, 20)),
                  s.outlineStyle !== "none" || e.classList.contains("active")] })()""")
        assert state[1], state
        if state[0] in seen and state[0].startswith("BODY"):
            break
        seen.add(state[0])
        shown.press("Tab")
    assert len(seen) > 20


def test_questions_are_found_and_paged(shown):
    visible = "[...document.querySelectorAll('[data-question]')].filter(q => !q.hidden).length"
    where = "document.querySelector('[data-where]').textContent"
    assert (shown.js(visible), shown.js(where)) == (20, f"1 to 20 of {COUNT}")
    shown.js("document.querySelector('[data-step=\"1\"]').focus()")
    shown.press("Enter")
    assert (shown.js(visible), shown.js(where)) == (COUNT - 20, f"21 to {COUNT} of {COUNT}")
    shown.js("document.querySelector('[data-text]').focus()")
    shown.call("Input.insertText", text="What is 7?")
    assert shown.js(visible) >= 1
    assert shown.js("[...document.querySelectorAll('[data-question]')].find(q => !q.hidden).textContent.includes('7?')")
    shown.call("Input.insertText", text=" nowhere")
    assert (shown.js(visible), shown.js(where)) == (0, "none found")


def test_without_scripts_everything_is_there(page, files):
    page.open(files["replay"], script=False)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.js("document.querySelector('.static svg').getBoundingClientRect().width > 300")
    hidden = ".live, .live-only, [data-theme-toggle], [data-search]"
    assert page.js(f"[...document.querySelectorAll({hidden!r})].every(e => getComputedStyle(e).display === 'none')")
    assert page.js("[...document.querySelectorAll('[data-question]')].every(q => !q.hidden)")


def test_screenshots_at_both_widths_show_the_curves(page, files, tmp_path):
    from matplotlib.image import imread

    for width in WIDTHS:
        page.open(files["replay"], width=width, mobile=width < 500)
        page.js(EVERY)
        page.js("document.querySelector('.plot').scrollIntoView({block: 'center'})")
        page.screenshot(tmp_path / "page.png", whole=False)
        image = imread(tmp_path / "page.png")
        assert image.shape[1] == width
        for color in ((0, 114, 178), (179, 65, 138), (213, 94, 0), (0, 158, 115), (122, 92, 0)):
            assert (abs(image[..., :3] * 255 - color).max(axis=-1) < 1).sum() > 20, color
