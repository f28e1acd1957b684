"""`dlmjax sample`: text sampled from a run, with a live view (`--watch`), a trace as a page (`--trace`) and JSON (`--json`)."""

import argparse
import pathlib
import sys

from dlmjax import flags
from dlmjax.cli.run_flags import add_grow, add_loops, add_placement, add_run, add_sampling, open_arguments, sample_values
from dlmjax.errors import InputError
from dlmjax.files import write_json

CANVAS_TEXTS = ("prompt", "suffix", "template", "edit", "start_t")
HELP = "text sampled from a run: free, with a prompt, infilled, from a template or edited; with a live view or a trace"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_placement(command)
    add_loops(command)
    add = command.add_argument
    add("--prompt", type=flags.text, default="", help="text at the start of the canvas, which conditions the sample (none)")
    add("--suffix", type=flags.text, default="", help="text at the end of the canvas, which conditions the sample (none)")
    add(
        "--template",
        type=flags.text,
        help='text with masked tokens: "The [MASK*12] of the [MASK*8]."; [SPAN*12]: masked tokens that no other span reads (none)',
    )
    add("--edit", type=flags.text, metavar="TEXT", help="text that is edited, by noise of time --start-t (none)")
    add("--start-t", type=flags.number(0, 1, open_low=True), metavar="T", help="time t from which edited text is denoised, in (0, 1] (0.5)")
    add("--length", type=flags.tokens, help="length of the canvas, tokens (the training length)")
    add("--count", type=flags.whole(1, 2**20), default=1, help="number of samples (1)")
    add("--steps", type=flags.whole(1, 2**20), default=64, help="number of denoising steps (64)")
    add_sampling(command)
    add(
        "--sweep",
        type=flags.tokens,
        metavar="W",
        help="width of the window, tokens, in which noise falls from left to right; 1: one by one (off: all positions together)",
    )
    add_grow(command)
    add("--stride", type=flags.tokens, metavar="N", help="step, tokens, of a window of the training length over a longer canvas (off)")
    add("--watch", action="store_true", help="live view of the denoising in the terminal (off)")
    add("--trace", type=flags.output_file, metavar="FILE.html", help="file for the trace, as a self-contained page (not written)")
    add("--json", type=flags.output_file, metavar="FILE", help="file for text, ids, seed, steps and entropy (not written)")


def run(arguments: argparse.Namespace, _) -> None:
    """Samples, prints, writes."""
    from dlmjax.sampling.guidance import guide_sha256
    from dlmjax.sampling.search import plain
    from dlmjax.sampling.text import text_of

    opened = open_arguments(arguments)
    tokenizer = opened.tokenizer
    canvas = opened.canvas(**{name: getattr(arguments, name) for name in ("length", "count", *CANVAS_TEXTS)})
    sampler = opened.sampler(stride=arguments.stride, **sample_values(arguments))
    result, found = _sampled(arguments, sampler, opened, canvas)
    for text in (text_of(tokenizer, tokens_L) for tokens_L in result.tokens_BL):
        print(text if arguments.count == 1 else f"---\n{text}", flush=True)
    print(
        f"({result.steps} steps, {result.evaluations} network calls; {result.draft_line}mean of a text: {result.counts}; "
        f"unigram entropy {result.entropy:.2f} nats/token, seed {arguments.seed})",
        flush=True,
    )
    if result.settings.stop is not None:
        nats = f"{result.exit_nats_B.mean():.3f} nats per text"
        print(f"(stop {result.settings.stop}: entropies less the largest of what it revealed at once, {nats})", flush=True)
    violation_B = _violations(result, opened.process.vocab)
    if violation_B is not None:
        kept, tau = int((violation_B <= result.settings.make_guide().tau).sum()), result.settings.make_guide().tau
        print(
            f"(guide: {kept} of {len(violation_B)} texts have a violation of at most {tau:g}, the largest {violation_B.max():.3g})",
            flush=True,
        )
    if found is not None:
        print(f"(search {found.search}: {len(found.candidates)} candidates, score of the chosen one {found.score:.4g})", flush=True)
    if result.advice:
        print(f"note: {result.advice}", file=sys.stderr, flush=True)
    if arguments.json:
        origin = {"step": opened.step, "weights": opened.weights, "workdir": str(arguments.workdir)}
        origin |= opened.placement
        origin |= {"loops": loops} if (loops := opened.experiment.loops) else {}
        origin |= {"chosen_process": chosen} if (chosen := opened.experiment.chosen_process) else {}
        origin |= {"guide_sha256": guide_sha256(result.settings)} if result.settings.guide else {}
        origin |= {} if violation_B is None else {"violation": [plain(value) for value in violation_B]}
        searched = {} if found is None else {"search": found.to_json(lambda tokens_L: text_of(tokenizer, tokens_L))}
        report = result.to_json(tokenizer, _document_lengths(opened))
        write_json(arguments.json, {**report, "stride": arguments.stride, "stop": arguments.stop, **origin, **searched})


def _violations(result, vocab: int):
    """The violation of each text of the guide's constraint; None where there is none."""
    from dlmjax.sampling.guidance import violation_of

    guide = result.settings.make_guide()
    return violation_of(guide, result.tokens_BL, vocab) if guide is not None and guide.on_text else None


def _document_lengths(opened):
    """Lengths of the held-out documents of the run's corpus, tokens; None where it is not attached or cannot be read."""
    from dlmjax.evaluation.document_ends import document_lengths
    from dlmjax.experiment import held_out_of

    try:
        corpus, _ = held_out_of(opened, None, "valid")
    except InputError as error:  # the texts are made; they are written without what the data would add
        print(f"note: no lengths of documents: {error}", file=sys.stderr, flush=True)
        return None
    return None if corpus is None else document_lengths(corpus)


def _sampled(arguments: argparse.Namespace, sampler, opened, canvas):
    """The samples, and with `--search` what it found; with `--watch` the live view, with `--trace` the page."""
    params, tokenizer = opened.params, opened.tokenizer
    if arguments.search is not None:
        from dlmjax.quality.verifiers import searcher

        if arguments.watch or arguments.trace:
            raise InputError("--search conflicts with --watch and --trace, which show one sample; leave them out")
        found = searcher(arguments.search, opened, sampler).sample(params, canvas, seed=arguments.seed)
        return found.samples, found
    if not (arguments.watch or arguments.trace):
        return sampler.sample(params, canvas, seed=arguments.seed, progress=True), None
    from dlmjax.sampling.html import write_html
    from dlmjax.sampling.terminal import TerminalView
    from dlmjax.sampling.trace import record

    view = TerminalView(tokenizer, canvas) if arguments.watch else None
    on_state = view.show if view else None
    result, trace = record(sampler, params, canvas, seed=arguments.seed, tokenizer=tokenizer, on_state=on_state)
    if arguments.trace:
        name = pathlib.Path(arguments.workdir).resolve().name
        write_html(trace, arguments.trace, f"Denoising trace of run {name}, step {opened.step}")
        print(f"denoising trace: {arguments.trace}", flush=True)
    return result, None
