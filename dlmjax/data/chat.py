"""Conversations as supervised text: what a chat template writes, and which of it the assistant wrote.  Never imports jax.

A template is a program from elsewhere: a process of its own renders it (`chat_renderer.py`), without files, clock or network, and with
bounds on time, memory and text. The answers are what its `{% generation %}` encloses. A template without that tag is rendered for the first
messages alone: an answer is then what follows the prompt for it, and each such render must be a prefix of the whole text, or the record is
refused.

Of an answer without tags the white space behind the mark of its end is given. Between `<think>` and `</think>` its role is thought.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from dlmjax.data.roles import CONDITION, ROLES, SCORED
from dlmjax.data.spans import Span, Unmarked
from dlmjax.errors import InputError
from dlmjax.files import parse_json, read_bounded, require_shape

MOST_SECONDS = 10.0  # of processor time, for one record
MOST_WAIT = 120.0  # seconds by the clock
_ROLES = {"developer": "system", "function": "tool", "ipython": "tool"} | {name: name for name in ("system", "user", "assistant", "tool")}
_ASSISTANT, _THOUGHT, _OTHER = (ROLES.index(name) for name in ("assistant", "thought", "other"))
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which data sets have it; templates read the first two
_TAGS = "give a template that encloses the answers in {% generation %} with --chat-template"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template of Jinja, and the special tokens that it may write: pairs of names, such as "bos_token", and texts."""

    text: str
    specials: tuple[tuple[str, str], ...] = ()

    @classmethod
    def load(cls, file: str | os.PathLike | None, tokenizer: str) -> "ChatTemplate":
        """The template of a file, or of the folder of the tokenizer with this spec. Raises InputError: there is none; jinja2 is missing."""
        if importlib.util.find_spec("jinja2") is None:
            raise InputError("--format chat requires jinja2; install it with: pip install 'dlmjax[chat]'")
        kind, _, location = tokenizer.partition(":")
        path = pathlib.Path(location)
        folder = (path if path.is_dir() else path.parent) if kind in ("hf", "gpt2", "wordpiece") and location else None
        found = _config(folder / "tokenizer_config.json") if folder else {}
        specials = (_config(folder / "special_tokens_map.json") if folder else {}) | found
        named = {name: token["content"] if isinstance(token, dict) and "content" in token else token for name, token in specials.items()}
        pairs = tuple(sorted((name, token) for name, token in named.items() if name.endswith("_token") and isinstance(token, str)))
        if file is not None:
            return cls(_read(pathlib.Path(file)), pairs)
        if folder and (folder / "chat_template.jinja").is_file():
            return cls(_read(folder / "chat_template.jinja"), pairs)
        text = found.get("chat_template")
        if isinstance(text, list):  # several, each with a name
            text = next((one.get("template") for one in text if isinstance(one, dict) and one.get("name") == "default"), None)
        if not isinstance(text, str):
            where = f"{folder} holds none" if folder else f"the tokenizer {tokenizer!r:.60} has no folder with one"
            raise InputError(f"--format chat requires a chat template, and {where}; give its file with --chat-template")
        return cls(text, pairs)

    @classmethod
    def from_request(cls, values: dict) -> "ChatTemplate":
        """The template in a manifest's request."""
        values = require_shape(values, {"text": str, "specials": {str: str}})
        return cls(values["text"], tuple(sorted(values["specials"].items())))

    def describe(self) -> dict[str, Any]:
        """The entry in a manifest's request."""
        digest = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()
        return {"text": self.text, "sha256": digest, "specials": dict(self.specials)}

    def spans(self, record: dict, control_texts: Iterable[str] = ()) -> tuple[str, list[Span], tuple[tuple[int, int], ...]]:
        """The text of a conversation, its parts, and where messages hold the text of a special token, which is ordinary text there.

        control_texts: texts that the tokenizer takes for special tokens in what a template writes.
        Raises Unmarked: a record or a template that cannot be used."""
        messages = _messages(record)
        tools = record.get("tools")
        if not (tools is None or isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise Unmarked("field 'tools' holds no list of objects")
        held = _Held.find([messages, tools], control_texts)
        messages, tools = held.hide(messages), held.hide(tools)
        reply = _ask({"template": self.text, "specials": dict(self.specials), "messages": messages, "tools": tools or None})
        if "error" in reply:
            raise Unmarked(f"the chat template {reply['error']}")
        answers = self._answers(messages, reply)
        if not answers:
            raise Unmarked("nothing to score: the chat template writes no answer of it")
        parts = _parts(reply["text"], answers, reply["starts"], [_ROLES[message["role"]] for message in messages])
        return held.show(reply["text"], parts)

    @staticmethod
    def _answers(messages: list[dict], reply: dict) -> list[tuple[int, int]]:
        """Where the answers are: what the tags enclose, or what follows each prompt."""
        if reply["generation"] is not None:
            return [(start, end) for start, end in reply["generation"]]
        if reply["flaw"]:
            raise Unmarked(f"the answers cannot be told from the chat template: {reply['flaw']}; {_TAGS}")
        text, found = reply["text"], []
        ends = [*reply["starts"][1:], len(text)]
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            begin, end = reply["prompts"][number], ends[number]
            if begin is None or end is None or end < begin:
                what = "before it" if begin is None else "up to it"
                raise Unmarked(
                    f"the answer in message {number + 1} cannot be told from the chat template: what it writes for the messages {what} "
                    f"alone is not a prefix of the whole conversation; {_TAGS}"
                )
            content = message.get("content")
            core = text[begin:end].rstrip()
            behind = core and not (isinstance(content, str) and content.strip() and core.endswith(content.strip()))
            if (end := begin + len(core) if behind else end) > begin:
                found.append((begin, end))
        return found


def _read(path: pathlib.Path) -> str:
    try:
        return read_bounded(path, advice="give the file of a chat template with --chat-template").decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not valid UTF-8; give the file of a chat template with --chat-template") from None


def _config(path: pathlib.Path) -> dict:
    """A JSON file of a tokenizer's folder; {} if it is missing. Raises InputError: it is damaged."""
    if not path.is_file():
        return {}
    try:
        return require_shape(parse_json(read_bounded(path), any_number=True), dict)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON object ({error}); get the tokenizer's folder again") from None


@dataclasses.dataclass(frozen=True)
class _Held:
    """The texts of special tokens that a record holds, each with a character that stands for it while the template is rendered: what a
    template writes itself can so be told from what a message says.

    The characters are of a private area of Unicode, and none of them is in the record.
    """

    characters: dict[str, str]

    @classmethod
    def find(cls, record: Any, control_texts: Iterable[str]) -> "_Held":
        """Those of these texts that a value holds anywhere, longer ones before others."""
        said = list(_texts(record))
        found = sorted((text for text in control_texts if any(text in one for one in said)), key=len, reverse=True)
        used = set().union(*said) if found else set()
        free = (chr(number) for number in range(0x100000, 0x10FFFE) if chr(number) not in used)
        return cls(dict(zip(found, free, strict=False)))

    def hide(self, value: Any) -> Any:
        """The value with a character in the place of each of the texts."""
        if isinstance(value, dict):
            return {self.hide(name): self.hide(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.hide(inner) for inner in value]
        if isinstance(value, str) and self.characters:
            return re.sub("|".join(map(re.escape, self.characters)), lambda found: self.characters[found[0]], value)
        return value

    def show(self, text: str, spans: list[Span]) -> tuple[str, list[Span], tuple[tuple[int, int], ...]]:
        """The text with the texts of special tokens in the place of the characters, its spans, and the ranges of these texts."""
        if not self.characters:
            return text, spans, ()
        of = {character: text for text, character in self.characters.items()}
        parts, ranges, moved, at = [], [], [0], 0
        for character in text:
            part = of.get(character, character)
            if character in of:
                ranges.append((at, at + len(part)))
            parts.append(part)
            at += len(part)
            moved.append(at)
        return "".join(parts), [span._replace(start=moved[span.start], end=moved[span.end]) for span in spans], tuple(ranges)


def _texts(value: Any) -> Iterator[str]:
    """Every text of a JSON value, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(inner)


def _messages(record: dict) -> list[dict]:
    """The messages of a record. Raises Unmarked."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unmarked(f"no list of messages in the field 'messages' ({', '.join(map(repr, record))})")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Unmarked(f"message {number} is not an object with a role and a content")
        if message["role"] not in _ROLES:
            raise Unmarked(f"message {number} has the role {message['role']!r:.60}; give one of {', '.join(_ROLES)}")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        text = all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)
        if not (content is None or isinstance(content, str | list) and text):
            raise Unmarked(f"message {number} has a content that is not text")
        if content is None and not message.get("tool_calls"):
            raise Unmarked(f"message {number} has no content")
    if not any(message["role"] == "assistant" for message in messages):
        raise Unmarked("nothing to score: it has no message of the assistant; remove the line")
    return [_with_reasoning(message) for message in messages]


def _with_reasoning(message: dict) -> dict:
    """As transformers does it: a thought under an older name is also under the names that templates read."""
    thought = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


def _parts(text: str, answers: list[tuple[int, int]], starts: list[int | None], roles: list[str]) -> list[Span]:
    """The whole text as spans: the answers scored, the rest given, each with the role of its message where this is known."""
    known = [(number, start) for number, start in enumerate(starts) if start is not None]
    known = [one for one in known if not any(begin < one[1] < end for begin, end in answers)]
    spans: list[Span] = []
    for (number, start), (following, end) in zip(known, [*known[1:], (len(starts), len(text))], strict=True):
        single = following == number + 1  # otherwise the part holds several messages, whose bounds are not known
        role, at, first = ROLES.index(roles[number]) if single else _OTHER, start, True
        for begin, stop in answers:
            if not (start <= begin and stop <= end) or begin < at:
                continue
            if begin > at:
                spans.append(Span(at, begin, CONDITION, role, first))
                first = not single
            spans += _answer(text, begin, stop, first)
            at, first = stop, False
        if at < end:
            spans.append(Span(at, end, CONDITION, role, first))
    return spans


def _answer(text: str, begin: int, end: int, first: bool) -> list[Span]:
    """The spans of an answer: its thoughts, and the rest of it. first: a message begins with it."""
    edges = [begin, *(edge for found in _THINKING.finditer(text, begin, end) for edge in found.span()), end]
    parts = [(a, b, _THOUGHT if odd % 2 else _ASSISTANT) for odd, (a, b) in enumerate(zip(edges, edges[1:], strict=False)) if b > a]
    return [Span(a, b, SCORED, role, first and a == begin) for a, b, role in parts]


# ---- the process that renders -------------------------------------------------------------------------------------------------------


class _Renderer:
    """A running `chat_renderer.py`."""

    def __init__(self):
        file = pathlib.Path(__file__).with_name("chat_renderer.py")
        self.owner = os.getpid()
        self._process = subprocess.Popen([sys.executable, "-P", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request: dict) -> dict:
        """The answer to a request. Raises EOFError: the process ended; TimeoutError."""
        content, until = json.dumps({**request, "seconds": MOST_SECONDS}).encode(), time.monotonic() + MOST_WAIT
        try:
            self._process.stdin.write(len(content).to_bytes(8, "little") + content)
            self._process.stdin.flush()
        except OSError:
            raise EOFError from None
        size = int.from_bytes(self._take(8, until), "little")
        return json.loads(self._take(size, until))

    def _take(self, count: int, until: float) -> bytes:
        parts, descriptor = [], self._process.stdout.fileno()
        while count:
            if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            parts.append(os.read(descriptor, min(count, 1 << 20)))
            if not parts[-1]:
                raise EOFError
            count -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_lock = threading.Lock()
_running: list[_Renderer] = []  # the one of this process, if it was started


def _ask(request: dict) -> dict:
    """The answer of this process's renderer, which is started at first use, and again after a template that broke it."""
    with _lock:
        if not _running or _running[0].owner != os.getpid():
            _running[:] = [_Renderer()]
            atexit.register(_running[0].close)
        try:
            return _running[0].ask(request)
        except (EOFError, TimeoutError) as error:
            atexit.unregister(_running[0].close)
            _running.pop().close()
            took = (
                f"takes too long ({MOST_WAIT:g} s by the clock are the limit)"
                if isinstance(error, TimeoutError)
                else "ended the process that renders it"
            )
            return {"error": f"{took}; correct the template, or remove the record"}
