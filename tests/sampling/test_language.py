"""Regular languages: the automaton matches what `re` matches, and draws, marginals and best texts are those of enumeration."""

import itertools
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.data.tokenizers import ByteTokenizer
from dlmjax.errors import InputError
from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.canvas import blank_canvas
from dlmjax.sampling.language import best_text, draw_text, log_marginals, log_mass, of_classes, only_revealed
from dlmjax.sampling.regex import MOST_PATTERN, byte_automaton, require_text, token_automaton
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.toy import Law

LETTERS = ("a", "b", "c", "d", "é", "ü", "1", " ", "\n", "\U0001f600")
PATTERNS = (
    *("a(b|c)*d", "[a-c]{2,3}", "(ab)?c+", "[^a]b", "a.c", "é[à-ü]+|d", r"[^\x00-\uffff]", "(a|)b{0,2}?", r"\d\w\s", r"\D\S\W"),
    *("[\ud7fb-\ue001]", "(a*)*b", "", "(?:ab){2}", "(?P<name>a)|b{2,}"),
)


def matches(automaton, data: bytes) -> bool:
    state = 0
    for byte in data:
        state = automaton.next_QB[state, byte]
        if state < 0:
            return False
    return bool(automaton.accepts_Q[state])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_automaton_matches_what_re_matches(pattern):
    """All texts of up to three letters, and single characters of all lengths in UTF-8."""
    automaton, rng = byte_automaton(pattern), random.Random(0)
    singles = [chr(rng.choice([rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(300)]
    for text in [*("".join(letters) for n in range(4) for letters in itertools.product(LETTERS, repeat=n)), *singles]:
        expected = re.fullmatch(pattern, text, re.ASCII if pattern.startswith(("\\d", "\\D")) else 0) is not None
        assert matches(automaton, text.encode()) == expected, (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        *[(pattern, "does not provide") for pattern in ("^a", "a$", r"\bx", "(?=a)b", r"(a)\1", "(?<!a)b")],
        *[(pattern, "is not a regular expression") for pattern in ("(", "a{3,1}", "[b-a]", "*a", "a**")],
        *[(pattern, "sets flags") for pattern in ("(?i)a", "(?s)a.")],
        ("(?i:a)", "does not provide"),
        ("(a|b)*a(a|b){14}", "more than 2048 states"),
        ("(a{200}){200}", "too large"),
        ("a" * (MOST_PATTERN + 1), f"give at most {MOST_PATTERN}"),
    ],
    ids=lambda text: text[:20],
)
def test_what_an_automaton_does_not_have_is_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        byte_automaton(pattern)


# Three symbols, of which one has two bytes, an end of document and a mask.
PIECES, EOS, MASK, LENGTH = [b"a", b"b", b"ab"], 3, 4, 5
TEXTS_NL = np.array(list(itertools.product(range(4), repeat=LENGTH)))


def language(pattern):
    """The automaton and which of TEXTS_NL it accepts: bytes that match, then ends alone."""
    automaton = token_automaton(byte_automaton(pattern), [*PIECES, b"", b""], EOS, 5)

    def inside(tokens):
        ends = [i for i, token in enumerate(tokens) if token == EOS] or [LENGTH]
        return all(t == EOS for t in tokens[ends[0] :]) and re.fullmatch(pattern.encode(), b"".join(PIECES[t] for t in tokens[: ends[0]]))

    return automaton, np.array([inside(tokens) is not None and bool(inside(tokens)) for tokens in TEXTS_NL.tolist()])


@pytest.mark.parametrize(("pattern", "revealed"), [("(ab)*b?", ()), ("a*b+", (2,)), ("(a|b){4,7}", ())])
def test_draws_marginals_and_best_text_are_those_of_enumeration(pattern, revealed):
    """The product of given probabilities, given the language: mass and marginals to rounding, 20,000 draws by chi-square."""
    automaton, inside_N = language(pattern)
    assert inside_N.sum() > 3
    logits_LV = jnp.asarray(np.random.default_rng(3).normal(size=(1, LENGTH, 5)) * 1.5, jnp.float32).at[..., MASK].set(-1e30)
    masked_BL = np.ones((1, LENGTH), bool)
    masked_BL[:, list(revealed)] = False
    log_p_BLV = only_revealed(logits_LV, jnp.ones((1, LENGTH), jnp.int32), jnp.asarray(masked_BL))
    p_N = np.exp(np.asarray(log_p_BLV, np.float64)[0][np.arange(LENGTH), TEXTS_NL].sum(axis=1)) * inside_N
    assert float(log_mass(automaton, of_classes(automaton, log_p_BLV))[0]) == pytest.approx(np.log(p_N.sum()), abs=1e-5)
    p_N /= p_N.sum()
    marginals_LV = np.stack([[p_N[TEXTS_NL[:, i] == v].sum() for v in range(5)] for i in range(LENGTH)])
    np.testing.assert_allclose(np.exp(log_marginals(automaton, log_p_BLV)[0]), marginals_LV, atol=2e-6)
    assert best_text(automaton, log_p_BLV)[0].tolist() == TEXTS_NL[p_N.argmax()].tolist()
    keys_B = jax.random.split(jax.random.key(1), 20_000)
    drawn_BL = np.asarray(draw_text(automaton, keys_B, jnp.broadcast_to(log_p_BLV, (20_000, LENGTH, 5))))
    counts_N = np.bincount(drawn_BL @ (4 ** np.arange(LENGTH - 1, -1, -1)), minlength=len(p_N))
    assert counts_N[~inside_N].sum() == 0 and chi_square_sigmas(counts_N, p_N) < 4
    uniform_N = inside_N & (p_N > 0)
    assert chi_square_sigmas(counts_N, uniform_N / uniform_N.sum()) > 4


def test_a_text_that_cannot_be_is_refused_before_the_network_is_called():
    automaton, _ = language("(ab){2}")
    free_BL = np.ones((2, 4), bool)
    require_text(automaton, np.zeros((2, 4), int), free_BL)
    with pytest.raises(InputError, match="matched by no text of 1 tokens; change the length or the pattern"):
        require_text(automaton, np.zeros((1, 1), int), free_BL[:1, :1])
    free_BL[1, 0] = False
    with pytest.raises(InputError, match="of 4 tokens with the tokens that row 1 of the canvas gives"):
        require_text(automaton, np.ones((2, 4), int), free_BL)
    with pytest.raises(InputError, match="of 5 tokens"):
        require_text(automaton, np.zeros((1, 5), int), np.ones((1, 5), bool), suppressed_ids=(EOS,))


def test_bytes_are_tokens_of_one_class_where_a_pattern_does_not_tell_them_apart():
    """The tokens of a byte tokenizer under `[a-z]+`: letters, the end, and the rest."""
    tokenizer = ByteTokenizer()
    automaton = token_automaton(byte_automaton("[a-z]+"), tokenizer.token_bytes, tokenizer.eos_id, tokenizer.vocab_size)
    assert automaton.next_QC.shape == (3, 3) and len(set(automaton.class_V[ord("a") : ord("z") + 1])) == 1


LAW = Law(symbols=3, length=4)


def regular(regex, **settings):
    automaton = token_automaton(byte_automaton(regex), [b"a", b"b", b"c", b""], None, LAW.vocab)
    return Sampler(LAW.process(), LAW.bind, SampleSettings(**{"rule": "random", "regex": regex, **settings}), constraint=automaton)


def test_one_step_is_the_product_given_the_language():
    """All tokens of a canvas at once, with the exact denoiser: chi-square against enumeration."""
    regex = "(ab|c)*|a+b?"
    inside_N = np.array([re.fullmatch(regex, "".join("abc"[i] for i in text)) is not None for text in LAW.texts_NL])
    single_LK = np.exp(np.asarray(LAW.denoise(np.full((1, 4), LAW.mask_id)))[0])
    p_N = single_LK[np.arange(4), LAW.texts_NL].prod(axis=1) * inside_N
    made = regular(regex, steps=1).sample(1.0, blank_canvas(4, 6000), seed=2)
    counts_N = np.bincount(LAW.index(made.tokens_BL), minlength=len(p_N))
    assert inside_N.sum() > 5 and chi_square_sigmas(counts_N, p_N / p_N.sum()) < 4


@pytest.mark.parametrize("settings", [{"rule": "entropy"}, {"rule": "confidence(remask=True)"}, {"temperature": 0.0}], ids=str)
def test_every_text_matches_under_every_rule(settings):
    """Two tokens a step, after a prompt; the same rows in a smaller batch are the same texts."""
    canvas = blank_canvas(4, 200)
    canvas.tokens_BL[:, 0], canvas.condition_mask_BL[:, 0], canvas.start_BL[:, 0] = 1, True, 0.0
    made = regular("b(a|bc|c{3})+", steps=2, **settings).sample(1.0, canvas, seed=2)
    texts = {"".join("abc"[i] for i in text) for text in made.tokens_BL}
    assert all(re.fullmatch("b(a|bc|c{3})+", text) for text in texts) and len(texts) > ("temperature" not in settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "a", "rule": "ancestral"}, "requires a rule"),
        ({"regex": "a", "top_p": 0.5}, "top_p=1"),
        ({"regex": "("}, "is not a regular expression"),
    ],
)
def test_settings_that_conflict_with_a_regex_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SampleSettings(**{"rule": "random", **settings})


@pytest.mark.parametrize("options", [{"stride": 2, "window": 4}, {}, {"cache": "dual"}], ids=str)
def test_samplers_of_pieces_refuse_a_regex(options):
    settings = SampleSettings(rule="random", regex="a*", cache=options.pop("cache", False))
    with pytest.raises(InputError, match="matched by a whole canvas"):
        sampler_for(LAW.process(), None, settings, **options)
    with pytest.raises(InputError, match="requires a sampler of the whole canvas"):
        Sampler(LAW.process(), LAW.bind, SampleSettings(rule="random", regex="a*"))
    with pytest.raises(InputError, match="matched by no text of 4 tokens"):
        regular("a{5}").sample(1.0, blank_canvas(4))
