"""Live view of denoising: a terminal redraws the canvas after every step; other streams receive a plain line every few steps.

Colours: text of the canvas is plain; a masked position is a dim dot; generated text goes from red (low confidence) over yellow to green
(high confidence); tokens revealed in the last step are underlined.
"""

import io
import shutil
import sys
import time

from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.samples import State
from dlmjax.sampling.text import Tokenizer, columns, piece

MASK_SIGN = "·"
PLAIN_STATES = 8  # number of states that are printed where there is no terminal
_COLOURS = (196, 202, 208, 214, 220, 184, 148, 112, 76, 40)  # 256-colour codes, from low to high confidence


class TerminalView:
    """Draws one row of the canvas.  Call `show` with each state; `trace.record` takes it as `on_state`.

    stream: output (standard output).  row: index of the row (0).
    frame_seconds: least time between two frames on a terminal, seconds (0.05).
    """

    def __init__(
        self, tokenizer: Tokenizer, canvas: Canvas, *, stream: io.TextIOBase | None = None, row: int = 0, frame_seconds: float = 0.05
    ):
        self._tokenizer, self._stream = tokenizer, stream or sys.stdout
        self._condition_mask_L, self._row = canvas.condition_mask_BL[row], row
        self._live = self._stream.isatty()
        self._frame_seconds = frame_seconds if self._live else 0.0
        self._drawn_lines, self._last_frame = 0, 0.0
        self._pieces: dict[int, str] = {}

    def show(self, state: State) -> None:
        """Draws one state: in place on a terminal; elsewhere as a plain line, at the first, the last and some of the other steps."""
        if not self._live:
            every = max(1, state.steps // PLAIN_STATES)
            if state.step % every == 0 or state.step == state.steps or not state.masked_BL.any():
                self._stream.write(f"{self._title(state)}  {''.join(self._cells(state, colour=False)).replace(chr(10), '')}\n")
                self._stream.flush()
            return
        wait = self._last_frame + self._frame_seconds - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        width, height = shutil.get_terminal_size()
        lines = [self._title(state), *self._wrapped(state, width)]
        if len(lines) > height - 1:  # a cursor cannot move above the window, so only the lines that fit are drawn
            lines = [*lines[: height - 2], f"... {len(lines) - height + 2} more lines"]
        back = f"\x1b[{self._drawn_lines}F\x1b[J" if self._drawn_lines else ""
        self._stream.write(back + "\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn_lines, self._last_frame = len(lines), time.monotonic()

    def _title(self, state: State) -> str:
        masked = int(state.masked_BL[self._row].sum())
        digits, wide = len(str(state.steps)), len(str(len(self._condition_mask_L)))
        return f"step {state.step:>{digits}}/{state.steps}  t = {state.time:.3f}  masked {masked:>{wide}}"

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = piece(self._tokenizer, token)
        return self._pieces[token]

    def _cells(self, state: State, colour: bool) -> list[str]:
        """Display text of every position; with colour, each line of a piece in colour codes (a piece may contain a line feed)."""
        cells = []
        for i, condition in enumerate(self._condition_mask_L):
            masked = bool(state.masked_BL[self._row, i])
            text = MASK_SIGN if masked else self._piece(int(state.tokens_BL[self._row, i]))
            if colour and not (condition and not masked):
                text = self._paint(text, state, i, masked)
            cells.append(text)
        return cells

    def _paint(self, text: str, state: State, i: int, masked: bool) -> str:
        if masked:
            code = "2"
        else:
            confidence = float(state.confidence_BL[self._row, i])
            code = f"38;5;{_COLOURS[min(int(confidence * len(_COLOURS)), len(_COLOURS) - 1)]}"
            if state.step and int(state.fixed_BL[self._row, i]) == state.step:
                code += ";4"
        return "\n".join(f"\x1b[{code}m{part}\x1b[0m" if part else "" for part in text.split("\n"))

    def _wrapped(self, state: State, width: int) -> list[str]:
        """Lines of at most `width` columns, without the colour codes."""
        lines, used = [""], 0
        bare = self._cells(state, colour=False)
        for plain, painted in zip(bare, self._cells(state, colour=True), strict=True):
            for n, (part, painted_part) in enumerate(zip(plain.split("\n"), painted.split("\n"), strict=True)):
                if n or (used and used + columns(part) > width):
                    lines.append("")
                    used = 0
                lines[-1] += painted_part
                used += columns(part)
        return lines
