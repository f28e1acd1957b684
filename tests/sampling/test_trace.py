"""Traces replay bit for bit; the page and the terminal show what was recorded and let nothing else through."""

import html.parser
import io
import json
import os
import re
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.sampling import html as page
from dlmjax.sampling import terminal, text, trace
from dlmjax.sampling.canvas import build_canvas, suppressed_ids
from dlmjax.sampling.sampler import Sampler, SampleSettings
from tests.sampling.toy import Bound, Letters

TOKENIZER = Letters()
STEPS = 6


def bind(params, segments_BL, positions_BL, attention):
    """Beliefs that depend on params, the position and how much is shown, over all of the alphabet, escape codes included."""

    def denoise(z_BL, t_BL):
        shown_B11 = (z_BL != TOKENIZER.mask_id).sum(axis=1)[:, None, None]
        return jnp.sin(params * (shown_B11 + 1) * (positions_BL[..., None] + 1.7) * jnp.arange(1, TOKENIZER.vocab_size + 1)) * 4

    return Bound(denoise)


def make(**settings) -> Sampler:
    settings = {"steps": STEPS, "rule": "confidence", "suppressed_ids": suppressed_ids(TOKENIZER, TOKENIZER.vocab_size), **settings}
    return Sampler(Masked(TOKENIZER.vocab_size, TOKENIZER.mask_id), bind, SampleSettings(**settings))


@pytest.fixture(scope="module")
def sampler():
    return make()


@pytest.fixture(scope="module")
def recorded(sampler):
    canvas = build_canvas(TOKENIZER, template="<b>a&b [MASK*9] end", batch=2)
    return trace.record(sampler, 1.0, canvas, seed=5, tokenizer=TOKENIZER)


def test_a_trace_is_the_sample_and_survives_json(sampler, recorded):
    samples, made = recorded
    plain = sampler.sample(1.0, made.canvas, seed=5)
    assert (samples.tokens_BL == plain.tokens_BL).all() and (made.tokens_SBL[-1] == plain.tokens_BL).all()
    assert made.states == STEPS + 1 and (made.tokens_SBL[0][~made.canvas.condition_mask_BL] == trace.MASKED).all()
    again = trace.Trace.from_json(json.loads(json.dumps(made.to_json())))
    assert again.settings == made.settings and again.pieces == made.pieces and again.texts == made.texts
    for name in ("tokens_SBL", "confidence_SBL", "times_S"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert trace.replay(again, sampler, 1.0) == STEPS + 1


def test_replay_tells_a_made_up_trace(sampler, recorded):
    """Another state, another seed, other weights, other settings, a missing state: each is noticed, with its place."""
    record = recorded[1].to_json()

    def changed(**fields):
        return trace.Trace.from_json({**json.loads(json.dumps(record)), **fields})

    assert trace.first_difference(changed(), sampler, 1.0) is None
    faked = json.loads(json.dumps(record["changes"]))
    faked[3][0][0][1] = (faked[3][0][0][1] + 1) % 20
    assert trace.first_difference(changed(changes=faked), sampler, 1.0) == 4
    assert trace.first_difference(changed(seed=6), sampler, 1.0) == 1
    assert trace.first_difference(changed(), sampler, 1.1) == 1
    shorter = changed(**{name: record[name][:-1] for name in ("changes", "times", "confidence")})
    assert trace.first_difference(shorter, sampler, 1.0) == STEPS
    with pytest.raises(InputError, match="does not replay: state 4 of 6"):
        trace.replay(changed(changes=faked), sampler, 1.0)
    with pytest.raises(InputError, match="the sampler of process"):
        trace.replay(recorded[1], make(temperature=0.5), 1.0)


def test_a_remasking_trace_replays():
    sampler = make(rule="confidence(remask=True)")
    _, made = trace.record(sampler, 1.0, build_canvas(TOKENIZER, length=12, prompt="a"), seed=4)
    hidden = made.tokens_SBL[:, 0] == trace.MASKED
    assert (hidden[1:] & ~hidden[:-1]).any(), "nothing was masked again: the case is not tested"
    assert trace.replay(trace.Trace.from_json(made.to_json()), sampler, 1.0) == STEPS + 1
    assert set(made.pieces.values()) == {f"<{token}>" for token in made.pieces}, "without a tokenizer ids are shown"


@pytest.mark.parametrize("record", [[], {}, {"format": "other"}, {"format": trace.FORMAT}])
def test_not_a_trace(record):
    with pytest.raises(InputError, match="trace"):
        trace.Trace.from_json(record)


@pytest.mark.parametrize("damage", [{"pieces": []}, {"first": [[2**40] * 12]}, {"changes": [[[[0, 2**40]]]]}])
def test_a_damaged_trace_is_refused_in_one_line(recorded, damage):
    with pytest.raises(InputError, match="trace is damaged"):
        trace.Trace.from_json(recorded[1].to_json() | damage)


# --- the page -----------------------------------------------------------------------------------------------------------------

VOID = {"meta", "input", "link", "br", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Collects elements and scripts; fails on tags that do not close in order."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.data = [], [], {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.data[self.open[-1]] = self.data.get(self.open[-1], "") + data


def test_the_page_holds_every_state_and_nothing_from_outside(recorded, tmp_path):
    _, made = recorded
    path = tmp_path / "new" / "trace.html"
    page.write_html(made, path, title="A <title> & more")
    source = path.read_text(encoding="utf-8")
    parsed = Page(source)
    again = trace.Trace.from_json(json.loads(parsed.data["script", "trace"]))
    np.testing.assert_array_equal(again.tokens_SBL, made.tokens_SBL)
    np.testing.assert_array_equal(again.confidence_SBL, made.confidence_SBL)
    assert [tag for tag, _ in parsed.elements].count("script") == 2, "text of the model opened an element"
    assert not any({"src", "href"} & set(attributes) for _, attributes in parsed.elements)
    assert "http://" not in source and "https://" not in source
    assert parsed.data["title", None] == "A <title> & more"
    assert {"slider", "play", "row", "colour", "text"} <= {attributes.get("id") for _, attributes in parsed.elements}
    for fact in ("confidence", "masked", "temperature", "seed"):
        assert fact in parsed.data["td", None] + parsed.data["th", None]
    assert "".join(made.texts) == parsed.data["pre", None]


def test_the_page_starts_at_the_first_state(recorded):
    set_to = re.findall(r'byId\("slider"\).value = (.*);', page.render_html(recorded[1]))
    assert set_to.count("0") == 2, "when the page opens, and when it plays again"


def test_ids_of_the_script_exist_in_the_page(recorded):
    source = page.render_html(recorded[1])
    used = set(re.findall(r'byId\("(\w+)"\)', source))
    assert used and used <= {attributes.get("id") for _, attributes in Page(source).elements}


def test_writing_is_atomic(recorded, tmp_path):
    path = tmp_path / "trace.html"
    path.write_text("before")
    page.write_html(recorded[1], path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["trace.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        page.write_html(recorded[1], tmp_path / "file" / "trace.html")
    with pytest.raises(InputError, match="cannot write"):
        page.write_html(recorded[1], tmp_path)
    recorded[1].write_json(tmp_path / "trace.json")
    assert trace.Trace.from_json(json.loads((tmp_path / "trace.json").read_text())).seed == 5


# --- the terminal -------------------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self):
        return True


def bare(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)


def test_live_view_redraws_in_place(sampler, recorded, monkeypatch):
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((20, 24)))
    canvas, screen = recorded[1].canvas, Screen()
    view = terminal.TerminalView(TOKENIZER, canvas, stream=screen, row=1, frame_seconds=0.0)
    frames = []
    for state in sampler.states(1.0, canvas, seed=5):
        screen.seek(0)
        screen.truncate()
        view.show(state)
        frames.append(screen.getvalue())
    assert not frames[0].startswith("\x1b[") and frames[0].count(terminal.MASK_SIGN) == 9
    for before, after in zip(frames, frames[1:], strict=False):
        assert after.startswith(f"\x1b[{before.count(chr(10))}F\x1b[J")
    assert all(len(bare(line)) <= 20 for line in frames[-1].split("\n")[1:])
    pieces = "".join(text.piece(TOKENIZER, int(t)) for t in recorded[1].tokens_SBL[-1][1])
    assert bare(frames[-1]).split("\n", 1)[1].replace("\n", "") == pieces.replace("\n", "")
    assert "masked  0" in frames[-1] and "step 6/6" in frames[-1] and ";4m" in frames[-1]


def test_a_tall_canvas_is_cut_to_the_window(sampler, recorded, monkeypatch):
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((4, 5)))
    screen = Screen()
    view = terminal.TerminalView(TOKENIZER, recorded[1].canvas, stream=screen, frame_seconds=0.0)
    view.show(next(iter(sampler.states(1.0, recorded[1].canvas, seed=5))))
    assert screen.getvalue().count("\n") == 4 and "more lines" in screen.getvalue()


def test_without_a_terminal_plain_lines(recorded):
    stream, canvas = io.StringIO(), build_canvas(TOKENIZER, length=40)
    many = make(steps=40, rule="random")
    trace.record(many, 1.0, canvas, seed=2, on_state=terminal.TerminalView(TOKENIZER, canvas, stream=stream).show)
    lines = stream.getvalue().splitlines()
    assert len(lines) == terminal.PLAIN_STATES + 1 and "\x1b" not in stream.getvalue()
    assert lines[0].startswith("step  0/40") and lines[0].endswith(terminal.MASK_SIGN * 40) and lines[-1].startswith("step 40/40")


def test_nothing_a_model_writes_moves_the_cursor():
    assert text.visible("a\x1b[2J\n\t\x7f\x9b\u202e\u200bé") == "a\u241b[2J↵\n→␡\ufffd\ufffd\ufffdé"
    assert text.columns("aé漢e\u0301") == 5
    escape = TOKENIZER.characters.index("\x1b")
    assert text.piece(TOKENIZER, escape) == "\u241b" and text.piece(TOKENIZER, TOKENIZER.eos_id) in ("<eos>", "<bos>")
    assert text.piece(TOKENIZER, TOKENIZER.mask_id) == "<mask>" and text.piece(None, 7) == "<7>"


def test_the_space_of_a_word_piece_is_kept():
    class WordPieces(Letters):
        def decode(self, ids):
            return " ".join(super(WordPieces, self).decode([i]) for i in np.asarray(ids).tolist())

    assert text.piece(WordPieces(), 0) == " a"
