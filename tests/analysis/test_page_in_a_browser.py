"""Pages in a real browser: nothing to complain about at both widths, figures drawn, every control by keyboard."""

import json
from shutil import copytree

import pytest

from dps.analysis.findings import rows_of
from tests.analysis.browser import BROWSER, browser
from tests.analysis.replays import COUNT, replay, write_harvest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser, google-chrome or chrome here"),
]

WIDTHS = (390, 1280)
DRAWN = """new Promise(done => { const look = () => {
  const boxes = [...document.querySelectorAll(".chart")];
  boxes.length && boxes.every(box => box.querySelector("svg path")) ? done(true) : setTimeout(look, 50); }; look() })"""
"""Waits until every figure is there."""
LINES = "[...document.querySelectorAll('[data-run] .mark-line')].map(e => e.outerHTML).join('')"
TITLES = "[...document.querySelectorAll('[data-run] .role-axis-title')].map(e => e.textContent).join(' ')"
TABLE = "document.querySelector('[aria-labelledby=policies] table')"
SHOWN = "[...document.querySelectorAll('.legend label:not([hidden])')].map(e => e.textContent.trim())"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from dps.analysis.write import write_several
    from tests.analysis.evaluations import power_manifest, write_evaluation, write_store
    from tests.analysis.test_report import traced, write_report

    folder = tmp_path_factory.mktemp("pages")
    stores = write_harvest(folder / "stores")
    replay(stores, folder / "one")
    copytree(folder / "one", folder / "two")
    write_several([folder / "one", folder / "two"], folder)
    write_report([write_evaluation(folder / "evaluation")], folder)
    write_report([write_store(folder / "traced", power_manifest(), traced(12))], folder / "mixing")
    return {
        "replay": folder / "one" / "replay.html",
        "compared": folder / "compared.html",
        "evaluation": folder / "report.html",
        "mixing": folder / "mixing" / "report.html",
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def shown(page, files):
    page.open(files["replay"])
    assert page.js(DRAWN)
    yield page
    assert page.complaints == []


def tab_to(page, selector, most=60):
    """Press Tab until an element has the focus, as someone without a mouse does."""
    for _ in range(most):
        page.press("Tab")
        if page.js(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"Tab does not come to {selector}")


def attribute(page, name):
    return page.js(f"document.activeElement.getAttribute({name!r})")


def settled(page):
    """Wait for what a control draws anew."""
    page.js("new Promise(done => setTimeout(done, 400))")


@pytest.mark.parametrize("name", ["replay", "compared", "evaluation", "mixing"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_complaints_no_requests_no_sideways_scrolling(page, files, name, width):
    page.open(files[name], width=width, mobile=width < 500)
    page.js("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.js(DRAWN)
    settled(page)
    assert page.complaints == []
    assert page.requests == [files[name].resolve().as_uri()]
    assert page.js("document.documentElement.scrollWidth") == width
    # Nothing stands out of the page, on a wide one but for what scrolls inside a box of its own.
    outside = """[...document.querySelectorAll("main *")].filter(e => (innerWidth < 500 || !e.closest(".scroll"))
      && !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.js(outside) == []
    for dark, colors in {False: [(246, 247, 249), (31, 35, 40)], True: [(14, 17, 22), (230, 233, 237)]}.items():
        page.theme(dark=dark)
        body = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
        assert page.js(body) == [f"rgb{color}" for color in colors]
    assert page.complaints == []


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
    mark = "[...document.querySelectorAll('[data-run] .mark-line path')].map(e => getComputedStyle(e).stroke)"
    before = shown.js(mark)
    assert {*before} >= {f"rgb{color}" for color in ((0, 114, 178), (179, 65, 138), (192, 74, 0), (0, 125, 91))}
    tab_to(shown, "[data-theme-toggle]", most=1)
    assert attribute(shown, "aria-label") == "Switch to dark colours"
    shown.press("Enter")
    assert shown.js("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)" != light
    assert shown.js(mark) != before  # figures follow without being drawn again
    assert attribute(shown, "aria-label") == "Switch to light colours"
    shown.press(" ")
    assert shown.js("getComputedStyle(document.body).backgroundColor") == light


def test_the_cost_is_switched_by_keyboard(shown):
    before = shown.js(LINES)
    assert "generated tokens per question" in shown.js(TITLES)
    tab_to(shown, "[name=cost]")
    for title in ("calibrated seconds per question", "questions an hour"):
        shown.press("ArrowRight")
        settled(shown)
        assert title in shown.js(TITLES)
        assert shown.js(LINES) != before


def test_zoom_by_keyboard(shown):
    before = shown.js(LINES)
    tab_to(shown, "[data-zoom='0.7']")
    shown.press("Enter")
    settled(shown)
    assert shown.js(LINES) != before
    tab_to(shown, "[data-zoom='0']")
    shown.press("Enter")
    settled(shown)
    assert shown.js(LINES).count("<path") == before.count("<path")


def test_families_ladders_and_policies_are_switched(shown):
    report = json.loads((files_of(shown).parent / "replay.json").read_text(encoding="utf-8"))
    rows = f"[...{TABLE}.querySelectorAll('tr[data-policy]:not([hidden])')].map(e => e.dataset.policy)"
    lines = "new Set([...document.querySelectorAll('[data-run] .mark-line path')].map(e => e.getAttribute('d'))).size"
    decide = shown.js(SHOWN)
    assert len(decide) == 8 < len(report["policies"])
    assert set(shown.js(rows)) == set(decide)  # the table has the rows of the figure
    choose = """(value => { const select = document.querySelector('select'); select.value = value;
      select.dispatchEvent(new Event('change', {bubbles: true})) })"""
    shown.js(f"{choose}('')")
    settled(shown)
    every, drawn = shown.js(SHOWN), shown.js(lines)
    assert every == [policy["policy"] for policy in report["policies"]]
    shown.js("document.querySelector('[data-group=rule]').click()")
    settled(shown)
    rules = [policy["policy"] for policy in report["policies"] if policy["family"] == "rule"]
    assert shown.js(SHOWN) == [name for name in every if name not in rules]
    assert shown.js(lines) < drawn
    shown.js("document.querySelector('[data-group=rule]').click()")
    shown.js(f"{choose}('power')")
    settled(shown)
    assert shown.js(SHOWN) == [policy["policy"] for policy in report["policies"] if policy["series"] == "power"]
    shown.js(f"{choose}('lowtemp')")
    settled(shown)
    empty = (
        "[...document.querySelectorAll('table.rows')].filter(e => !e.querySelector('tbody tr:not([hidden])')).length"
    )
    assert shown.js(empty) == 0  # a table without any of the shown policies stays whole
    shown.js(f"{choose}('power')")
    settled(shown)
    shown.js("document.querySelector('.legend input[value=gbdt]').click()")
    settled(shown)
    assert "gbdt" not in shown.js(rows)
    shown.js("document.querySelector('[data-follow] input').click()")
    assert set(shown.js(rows)) == {policy["policy"] for policy in report["policies"] if rows_of(policy)}


def files_of(page):
    """The file that is shown."""
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    return Path(unquote(urlsplit(page.js("location.href")).path))


@pytest.mark.parametrize("width", WIDTHS)
def test_pointing_at_a_point_says_what_it_is(page, files, width):
    page.open(files["replay"], width=width, mobile=width < 500)
    assert page.js(DRAWN)
    page.js("document.querySelector('[data-run]').scrollIntoView({block: 'center'})")
    x, y, w, h = page.js(
        "(b => [b.x, b.y, b.width, b.height])(document.querySelector('[data-run] svg').getBoundingClientRect())"
    )
    page.mouse("mouseMoved", x + w / 2, y + h / 2)
    page.mouse("mouseMoved", x + w / 2 + 2, y + h / 2)
    settled(page)
    text = page.js("document.querySelector('#vg-tooltip-element.visible')?.innerText ?? ''")
    for part in ("policy", "setting", "accuracy [95 %]", "% [", "tokens", "seconds", "mean responses"):
        assert part in text
    inside = """(() => { const tip = document.querySelector('#vg-tooltip-element').getBoundingClientRect();
      return tip.left >= 0 && tip.right <= innerWidth })()"""
    assert page.js(inside)
    apart = """[...document.querySelectorAll('#vg-tooltip-element tr')].every(({ cells: [key, value] }) => {
      const words = document.createRange(); words.selectNodeContents(key);
      return words.getBoundingClientRect().right <= value.getBoundingClientRect().left + 1 })"""
    assert page.js(apart)
    assert page.complaints == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_is_sorted_by_keyboard(page, files, width):
    page.open(files["evaluation"], width=width, mobile=width < 500)
    assert page.js(DRAWN)
    report = json.loads(files["evaluation"].with_suffix(".json").read_text(encoding="utf-8"))
    tokens = sorted(round(row["tokens"], 3) for policy in report["policies"] for row in rows_of(policy))
    head = page.js(f"[...{TABLE}.tHead.rows[0].cells].findIndex(e => e.innerText.trim() === 'tokens')")
    values = f"[...{TABLE}.tBodies[0].rows].map(row => Number(row.cells[{head}].dataset.v))"
    assert page.js(values) != pytest.approx(tokens)
    page.js(f"{TABLE}.tHead.rows[0].cells[{head}].firstElementChild.focus()")
    page.press("Enter")
    assert page.js(values) == pytest.approx(tokens, rel=1e-5)
    assert page.js("document.activeElement.parentElement.ariaSort") == "ascending"
    page.press("Enter")
    assert page.js(values) == pytest.approx(tokens[::-1], rel=1e-5)
    assert page.js(
        f"[...{TABLE}.querySelectorAll('tbody td')].every(cell => cell.dataset.name)"
    )  # on a phone every value has its column's name
    before = page.js(f"getComputedStyle({TABLE}.querySelector('td'), '::before').content")
    assert before == ('"family"' if width < 500 else "none")


def test_every_figure_has_a_table_csv_and_png(page, files, tmp_path):
    page.open(files["mixing"])
    assert page.js(DRAWN)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    assert page.js("document.querySelectorAll('.chart').length") == 3
    assert page.js("document.querySelectorAll('.save').length") == 3
    page.js("document.querySelectorAll('details').forEach(e => { e.open = true })")
    settled(page)
    assert page.js(
        "[...document.querySelectorAll('.alternative')].every(e => e.querySelectorAll('tbody tr').length > 1)"
    )
    for button in page.js("[...document.querySelectorAll('.save button')].map((e, i) => i)"):
        page.js(f"document.querySelectorAll('.save button')[{button}].click()")
        settled(page)
    page.js("document.querySelector('button.csv').click()")
    settled(page)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {*saved} == {
        *("accuracy.png", "accuracy.csv", "mixing-0-0.png", "mixing-0-0.csv", "mixing-0-1.png", "mixing-0-1.csv"),
        "Policies.csv",
    }
    assert all(content.startswith(b"\x89PNG") for name, content in saved.items() if name.endswith(".png"))
    rows = saved["accuracy.csv"].decode().splitlines()
    assert rows[0] == "run,policy,setting,accuracy,low,high,threshold,mean_k,tokens,calibrated_s,compute_s,latency_s"
    report = json.loads(files["mixing"].with_suffix(".json").read_text(encoding="utf-8"))
    assert len(rows) == 1 + sum(len(policy["curve"]) for policy in report["policies"])
    assert page.complaints == []


def test_focus_can_be_seen_on_every_control(shown):
    shown.press("Tab")
    seen = set()
    for _ in range(60):
        state = shown.js("""(() => { const e = document.activeElement;
          return [e.tagName + (e.id || e.value || e.textContent.slice(0, 20)),
                  getComputedStyle(e).outlineStyle !== "none"] })()""")
        if state[0].startswith("BODY"):
            break
        assert state[1], state
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


def test_without_scripts_all_but_the_figures_is_there(page, files):
    page.open(files["replay"], script=False)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    hidden = ".controls, .legend, .alternative, [data-theme-toggle], [data-search]"
    assert page.js(f"[...document.querySelectorAll({hidden!r})].every(e => getComputedStyle(e).display === 'none')")
    assert page.js("[...document.querySelectorAll('[data-question]')].every(q => !q.hidden)")
    assert page.js("document.querySelectorAll('tr[data-policy]').length") > 20
    assert "replay.png beside this page" in page.js("document.querySelector('noscript').textContent")
