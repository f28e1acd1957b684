"""The page of `dlmjax play` in a real browser, against a real server: everything on it that a person clicks, types or reads.

Where `DLMJAX_REQUIRE_BROWSER=1` is set, as in continuous integration, a missing browser is a failure; elsewhere these tests are skipped.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil

import pytest

from dlmjax.data.prepare import prepare
from dlmjax.play.fields import Limits
from dlmjax.play.traces import read_trace
from dlmjax.sampling import Trace
from tests.play.serving import make_run, serving

MODULES = ("starlette", "uvicorn", "playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in MODULES if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
if MISSING and os.environ.get("DLMJAX_REQUIRE_BROWSER") != "1":
    pytest.skip(f"the browser tests require {', '.join(MISSING)}", allow_module_level=True)

sync_api = importlib.import_module("playwright.sync_api")
expect = sync_api.expect

LENGTH, STEPS = 12, 6
MASK = "\u00b7"
MARKUP = '<img src=x onerror="document.title=1"><script>document.title=1</script>'


@pytest.fixture(scope="module")
def server(small_corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("play")
    letters = root / "letters.jsonl"
    letters.write_text('{"text": "%s"}\n' % ("the cat sat on the mat " * 20))
    prepare([str(letters)], "char27", str(root / "prepared"))
    runs = (
        make_run(root / "tiny", small_corpus),
        make_run(root / "noisy", small_corpus, process__name="uniform", model__time_input="adaln"),
        make_run(root / "letters", root / "prepared"),
    )
    with serving(*runs, "--length", "64") as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    # The sandbox of chromium does not start for root, who runs continuous integration.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Tab:
    """A tab with the page, opened and ready."""

    def __init__(self, page, url):
        self.page, self.errors = page, []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        self.status("ready")
        self.fill(length=LENGTH, steps=STEPS)

    def __call__(self, selector):
        return self.page.locator(selector)

    def fill(self, **fields):
        for name, value in fields.items():
            self(f"#{name.replace('_', '-')}").fill(str(value))

    def status(self, text):
        expect(self("#status")).to_have_text(text, timeout=60_000)

    def sample(self, button="#sample"):
        self(button).click()
        self.status("finished")

    def tokens(self, pane=0):
        """The texts of the tokens; MASK where masked."""
        return self(".pane").nth(pane).locator(".token").all_text_contents()

    def held(self):
        return [number for number, name in enumerate(self.classes()) if "held" in name.split()]

    def classes(self, pane=0):
        return self(".pane").nth(pane).locator(".token").evaluate_all("tokens => tokens.map(token => token.className)")

    def token(self, number, pane=0):
        return self(".pane").nth(pane).locator(".token").nth(number)

    def scrub(self, step):
        self("#slider").fill(str(step))


@pytest.fixture
def tab(server, browser):
    with opened(server, browser) as found:
        yield found


@contextlib.contextmanager
def opened(server, browser, **options):
    """A tab of a context of its own; a script error on the page is a failure."""
    page = browser.new_page(**({"viewport": {"width": 1280, "height": 800}} | options))
    try:
        found = Tab(page, server.url)
        yield found
        assert not found.errors, found.errors
    finally:
        page.close()


def lines(server, template, length=LENGTH, run="tiny", **settings):
    """The states that the server streams to a program."""
    sent = {"run": run, "template": template, "settings": {"steps": STEPS, **settings}} | ({"length": length} if length else {})
    return [line for line in server.sample(**sent) if line["type"] == "state"]


def states(server, template, length=LENGTH, run="tiny", **settings):
    """Their texts: the page shows the same."""
    return [[text or MASK for text in line["texts"]] for line in lines(server, template, length, run, **settings)]


def test_a_typed_prompt_is_sampled_step_by_step_and_scrubbed(server, tab):
    wanted = states(server, "The ")
    tab.fill(text="The ")
    tab("#set-canvas").click()
    start = tab.tokens()
    assert start == [*"The "] + [MASK] * 8 and tab.held() == [0, 1, 2, 3]
    tab.sample()
    assert tab.tokens() == wanted[-1] and tab.held() == [0, 1, 2, 3]
    expect(tab(".step").first).to_contain_text(f"step {STEPS} of {STEPS}, t = 0.000, {STEPS} calls")
    for step in (3, 1, STEPS):
        tab.scrub(step)
        assert tab.tokens() == wanted[step - 1]
    tab.scrub(0)
    assert tab.tokens() == start and tab("#before").is_disabled()
    tab("#play").focus()
    for key, step in ((".", 1), (".", 2), (",", 1)):
        tab.page.keyboard.press(key)
        assert tab.tokens() == wanted[step - 1]
    tab("#slider").press("ArrowRight")
    assert tab.tokens() == wanted[1]
    new = [number for number, name in enumerate(tab.classes()) if "new" in name.split()]
    assert new == [number for number in range(LENGTH) if wanted[1][number] != wanted[0][number]]
    tab("#play").click()
    expect(tab("#where")).to_have_text(f"{STEPS} / {STEPS}")
    expect(tab("#play")).to_have_text("Play")


def test_masks_are_inserted_into_the_text_and_filled_between_fixed_words(server, tab):
    tab.fill(text="a  b", mask_count=5)
    tab("#text").evaluate("area => area.setSelectionRange(2, 2)")
    tab("#insert-masks").click()
    expect(tab("#text")).to_have_value("a [MASK*5] b")
    tab.sample()
    assert tab.tokens() == states(server, "a [MASK*5] b", None)[-1] and tab.held() == [0, 1, 7, 8]


def test_a_token_is_held_and_sent_back_to_noise(tab):
    tab.fill(text="The ")
    tab.sample()
    before = tab.tokens()
    tab.token(6).click()
    tab("#hold").click()
    assert tab.held() == [0, 1, 2, 3, 6] and tab("#hold").inner_text() == "Release"
    tab.token(9).click()
    tab("#noise").click()
    assert tab.tokens() == [*before[:9], MASK, *before[10:]] and tab.classes()[9] == "token mask selected"
    tab("#panel-close").click()
    tab.sample("#fill")
    filled = tab.tokens()
    assert filled[:9] + filled[10:] == before[:9] + before[10:] and filled[9] != MASK
    tab.fill(seed=5)
    tab.sample()
    again = tab.tokens()
    assert tab.held() == [0, 1, 2, 3, 6] and again[6] == before[6] and again != filled
    tab.scrub(0)
    assert tab.tokens() == [token if number in (0, 1, 2, 3, 6) else MASK for number, token in enumerate(before)]
    # What is shown is what is sent: of this state one more position is filled by hand, and the rest is denoised from it.
    tab.token(7).click()
    tab("#write").fill("q")
    tab("#write-form button").click()
    expect(tab.token(7)).to_have_text("q")
    tab.sample("#fill")
    assert tab.tokens()[7] == "q" and MASK not in tab.tokens() and tab.held() == [0, 1, 2, 3, 6, 7]
    tab.token(7).click()
    tab("#hold").click()
    assert tab.held() == [0, 1, 2, 3, 6]


def test_alternatives_are_the_tokens_of_the_network_and_one_is_chosen(server, tab):
    tab.fill(text="The ")
    tab.sample()
    before = tab.tokens()
    tab.token(5).click()
    tab("#alternatives").click()
    entries = tab("#alternative-list button")
    expect(entries.first).to_be_focused()
    ids = [{"id": token, "held": True} for token in lines(server, "The ")[-1]["ids"]]
    found = server.json("/api/alternatives", {"run": "tiny", "canvas": ids, "position": 5})["alternatives"]
    labels = [entry.get_attribute("aria-label") for entry in entries.all()]
    assert labels == [f"{'space' if e['text'] == ' ' else e['text']}, probability {e['p']:.3f}" for e in found] and 1 < len(found) <= 20
    entries.nth(1).click()
    assert tab.tokens() == [*before[:5], found[1]["text"], *before[6:]] and 5 in tab.held()


def test_a_selection_of_several_tokens_is_removed_extended_and_written_over(tab):
    tab.fill(text="abcdef", length=8)
    tab("#set-canvas").click()
    tab.token(1).click()
    tab.token(3).click(modifiers=["Shift"])
    expect(tab("#panel-title")).to_have_text("Tokens 2 to 4: bcd")
    expect(tab("#alternatives-part")).to_be_hidden()
    tab("#write").fill("XY")
    tab("#write-form button").click()
    expect(tab("#panel-title")).to_have_text("Tokens 2 to 3: XY")
    assert tab.tokens() == [*"aXYef", MASK, MASK]
    tab("#wider-right").click()
    tab("#wider-left").click()
    tab("#remove").click()
    assert tab.tokens() == ["f", MASK, MASK]
    tab.token(0).click()
    tab("#insert-before").click()
    tab("#insert-after").click()
    assert tab.tokens() == [MASK, "f", MASK, MASK, MASK]
    tab("#remove").click()
    assert tab.tokens() == [MASK] * 4


def test_two_rules_and_two_runs_are_compared_on_one_seed(server, tab):
    tab("#compare").check()
    tab.fill(text="The ")
    tab(".run").nth(1).select_option("tiny")
    tab(".way").nth(1).select_option("left_to_right")
    tab.sample()
    assert tab.tokens(0) == states(server, "The ")[-1]
    wanted = states(server, "The ", rule="left_to_right")
    assert tab.tokens(1) == wanted[-1]
    expect(tab("h2").nth(1)).to_have_text("B: tiny, left_to_right")
    tab.scrub(2)
    assert tab.tokens(1) == wanted[1] and MASK in tab.tokens(0)
    tab(".run").nth(1).select_option("noisy")
    expect(tab(".typed").nth(1)).to_have_value("")
    tab.scrub(STEPS)
    tab.sample()
    both = tab.tokens(0), tab.tokens(1)
    assert both == (states(server, "The ")[-1], states(server, "The ", run="noisy")[-1])
    tab(".run").nth(1).select_option("letters")
    tab("#sample").click()
    expect(tab("#error")).to_contain_text("run letters conflicts with the tokens that are shown: its tokenizer is another")
    assert both == (tab.tokens(0), tab.tokens(1))


def test_a_saved_trace_is_read_by_the_library_and_opens_in_another_tab(server, browser, tab, tmp_path):
    tab.fill(text="The ")
    tab.sample()
    with tab.page.expect_download() as download:
        tab("#save").click()
    file = tmp_path / "trace.html"
    download.value.save_as(file)
    record = json.loads(re.search(r'<script type="application/json" id="trace">(.*?)</script>', file.read_text(), re.S).group(1))
    trace = Trace.from_json(record)
    assert trace.states == STEPS + 1 and tab.tokens() == [trace.pieces[int(token)] for token in trace.tokens_SBL[-1, 0]]
    with opened(server, browser) as other:
        other("#open").set_input_files(file)
        other.status("opened trace.html")
        for step in (0, 2, STEPS):
            tab.scrub(step)
            other.scrub(step)
            assert other.tokens() == tab.tokens() and other.classes() == tab.classes()
        broken = tmp_path / "broken.json"
        broken.write_text('{"format": "none"}')
        other("#open").set_input_files(broken)
        expect(other("#error")).to_contain_text("this is not a denoising trace")


def test_text_of_a_model_is_never_markup(server, tab, tmp_path):
    """A corpus may hold any text: here a token's text is an image with a script."""
    tab.fill(text=MARKUP[:8], length=LENGTH)
    tab.sample()
    with tab.page.expect_download() as download:
        tab("#save").click()
    file = tmp_path / "trace.json"
    download.value.save_as(tmp_path / "trace.html")
    record = read_trace((tmp_path / "trace.html").read_bytes(), Limits()).to_json()
    token = record["first"][0][0]
    file.write_text(json.dumps(record | {"pieces": record["pieces"] | {str(token): MARKUP}}))
    tab("#open").set_input_files(file)
    tab.status("opened trace.json")
    assert tab.tokens()[0] == MARKUP
    tab.token(0).click()
    expect(tab("#panel-title")).to_contain_text("<img")
    tab("#panel-close").click()
    tab(".typed").first.fill(MARKUP)
    tab("#sample").click()
    expect(tab("#error")).to_contain_text("<img")
    assert tab("img").count() == 0 and tab("script").count() == 1 and tab.page.title() == "dlmjax play"


def test_cancel_ends_a_long_sample_and_keeps_what_is_shown(tab):
    tab.fill(steps=4000)
    tab("#sample").click()
    expect(tab(".step").first).to_contain_text("s left", timeout=60_000)
    assert tab("#sample").is_disabled() and 0 < tab("progress").first.evaluate("bar => bar.value") < 1
    tab("#set-canvas").click()
    expect(tab("#error")).to_have_text("a sample is not finished; cancel it first")
    tab("#cancel").click()
    tab.status("cancelled")
    expect(tab("#error")).to_be_hidden()
    assert MASK in tab.tokens() and tab("#cancel").is_disabled() and tab("#save").is_disabled()
    tab.fill(steps=STEPS)
    tab.sample()
    assert MASK not in tab.tokens()


def test_errors_are_one_line_and_the_last_sample_stays(tab):
    tab.fill(text="The ")
    tab.sample()
    before = tab.tokens()
    for selector, value, part in (
        (".typed", "bogus", "bogus"),
        (".typed", "entropy_bound(gamma=-1)", "gamma"),
        ("#steps", "0", "steps"),
        ("#stop", "bogus", "unknown stop"),
        ("#temperature", "", "the temperature is not a number; type one"),
    ):
        field = tab(selector).first
        good = field.input_value()
        field.fill(value)
        tab("#sample").click()
        expect(tab("#error")).to_contain_text(part)
        assert "\n" not in tab("#error").inner_text() and tab.tokens() == before
        expect(tab("#where")).to_have_text(f"{STEPS} / {STEPS}")
        field.fill(good)
    tab.sample()
    expect(tab("#error")).to_be_hidden()
    tab.fill(length=65)
    tab("#sample").click()
    expect(tab("#error")).to_have_text("the length is above 64 tokens; choose a smaller one")
    tab.fill(length=LENGTH)
    tab.page.context.set_offline(True)
    tab("#sample").click()
    expect(tab("#error")).to_have_text("the server does not answer; start it again with: dlmjax play RUN")
    assert tab.tokens() == before


def test_an_address_without_its_token_is_refused_in_one_line(server, browser):
    page = browser.new_page()
    answer = page.goto(server.url.replace("token=", "token=x"))
    assert answer.status == 401
    page.close()


def test_two_tabs_sample_at_once(server, browser, tab):
    with opened(server, browser) as other:
        tab.fill(text="The ")
        other.fill(text="It is ", seed=0)
        tab("#sample").click()
        other("#sample").click()
        for each, text in ((tab, "The "), (other, "It is ")):
            each.status("finished")
            assert each.tokens() == states(server, text)[-1]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_its_window_and_is_used_by_keys(server, browser, width, scheme):
    with opened(server, browser, viewport={"width": width, "height": 800}, color_scheme=scheme) as tab:
        tab.fill(text="The ")
        tab("#text").press("Tab")
        tab("#sample").focus()
        tab.page.keyboard.press("Enter")
        tab.status("finished")
        tab("#compare").check()
        tab("#numbers").check()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        # Spaces at the end of a line stay within their pane, too.
        tab("#numbers").uncheck()
        tab.fill(text="a" + " " * 58, length=60)
        tab("#set-canvas").click()
        pane = tab(".tokens").first.bounding_box()
        right = tab(".tokens").first.evaluate("all => Math.max(...Array.from(all.children, each => each.getBoundingClientRect().right))")
        assert right <= pane["x"] + pane["width"] + 1
        tab.fill(text="The ", length=LENGTH)
        tab.sample()
        tab("#compare").uncheck()
        tab.token(0).focus()
        for key in ("End", "ArrowLeft", "ArrowLeft", "Shift+ArrowRight"):
            tab.page.keyboard.press(key)
        expect(tab.token(LENGTH - 2)).to_be_focused()
        # A token at the lower edge of the window, where the panel of a narrow one opens.
        tab.token(LENGTH - 2).evaluate("token => window.scrollBy(0, token.getBoundingClientRect().bottom + 5 - innerHeight)")
        top = tab.page.evaluate("scrollY")
        tab.page.keyboard.press("Enter")
        expect(tab("#panel-title")).to_contain_text(f"Tokens {LENGTH - 2} to {LENGTH - 1}")
        expect(tab("#hold")).to_be_focused()
        tab.page.keyboard.press("Enter")
        assert tab.held() == [0, 1, 2, 3, LENGTH - 3, LENGTH - 2]
        token, panel = tab.token(LENGTH - 2).bounding_box(), tab("#panel").bounding_box()
        assert token["y"] + token["height"] <= panel["y"] or panel["x"] + panel["width"] <= token["x"]
        assert width < 1000 or tab.page.evaluate("scrollY") == top  # the panel is beside the tokens
        tab.page.keyboard.press("Escape")
        expect(tab("#panel")).to_be_hidden()
        expect(tab.token(LENGTH - 3)).to_be_focused()
        assert re.match(rf"{LENGTH - 2}: .+, held$", tab.token(LENGTH - 3).get_attribute("aria-label"), re.S)
        # One tab stop for all tokens; each field and button has a name.
        assert tab("#panes .token[tabindex='0']").count() == 2
        unnamed = "nodes => nodes.filter(n => !(n.labels?.length || n.getAttribute('aria-label') || n.textContent.trim())).map(n => n.id)"
        assert tab("input, select, textarea, button, progress").evaluate_all(unnamed) == []


def test_each_colour_of_the_page_is_readable(server, browser):
    """Contrast of text to its background by WCAG 2: at least 4.5, in both schemes, for every kind of token."""
    for scheme in ("light", "dark"):
        with opened(server, browser, color_scheme=scheme) as tab:
            for name in ("", " mask", " c0", " c1", " c2", " c3", " held"):
                pair = tab("#legend .token").first.evaluate(
                    """(token, name) => { token.className = 'token' + name; const style = getComputedStyle(token);
                    return [style.color, style.backgroundColor, getComputedStyle(document.body).backgroundColor]; }""",
                    name,
                )
                fore, back, page = (list(map(float, re.findall(r"[\d.]+", colour))) for colour in pair)
                assert contrast(fore, page if len(back) == 4 and back[3] == 0 else back) >= 4.5, (scheme, name, pair)


def contrast(*colours):
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
