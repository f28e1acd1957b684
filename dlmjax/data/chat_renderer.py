"""A process of its own that renders chat templates: what a template from elsewhere may use is bounded.  Imports nothing of dlmjax.

The parent writes requests to the standard input and reads answers from the standard output, each JSON behind its length (8 bytes). A
request has the template, its special tokens and the messages; the answer has "error", or the text and what `chat.py` requires to find its
spans:

    text         the whole conversation
    generation   [[start, end], ...]: what `{% generation %}` encloses; null where the template has no such tag
    starts       where the part of each message begins; null where the render of the messages before it is not a prefix of the text
    prompts      for each answer, where the prompt for it ends (`add_generation_prompt`); null as above
    flaw         why the answers cannot be told from prefixes, if a rewritten or an added header shows it

A request has at most its `seconds` of processor time, `MOST_MEMORY` bytes of memory in all, and `MOST_TEXT` characters; the parent ends a
process that takes longer by its clock.
"""

import json
import resource
import signal
import sys

MOST_MEMORY = 2 << 30
MOST_TEXT = 1 << 24
EPOCH = "2026-01-01 00:00:00"  # what strftime_now says: the corpus must not depend on the day
ANSWERED = ("assistant",)


class TooLong(Exception):
    """A request takes more time or text than it may."""


def make_environment():
    """The environment of transformers, without its clock: an immutable sandbox with the tracker of `{% generation %}`."""
    import datetime

    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """Notes what `{% generation %}` encloses, as positions in the text so far."""

        tags = {"generation"}

        def __init__(self, environment):
            super().__init__(environment)
            environment.extend(written=[], found=[])

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

        def _note(self, caller):
            text = caller()
            start = sum(map(len, self.environment.written))
            self.environment.found.append((start, text))
            return text

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromisoformat(EPOCH).strftime(form)

    class PlainDict:
        """`dict(...)` of a template, without the attributes of the type."""

        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

    class PlainNamespace(jinja2.utils.Namespace):
        """`namespace(...)` of a template: no name with an underscore first."""

        def __init__(*args, **kwargs):
            self, args = args[0], args[1:]
            values = dict(*args, **kwargs)
            for name in values:
                PlainNamespace._check(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name, value):
            PlainNamespace._check(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name):
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"the attribute {name!r} is not allowed")

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, dict=PlainDict(), namespace=PlainNamespace)
    return environment


class Renderer:
    """A compiled template with its special tokens."""

    def __init__(self, template: str, specials: dict):
        from jinja2 import nodes

        self.environment, self.specials = make_environment(), specials
        tree = self.environment.parse(template)
        self.tagged = any(getattr(call.call.node, "name", None) == "_note" for call in tree.find_all(nodes.CallBlock))
        self.template = self.environment.from_string(template)

    def render(self, messages: list, tools, prompt: bool = False) -> str:
        """The text of a conversation. prompt: with the header of the answer that is to come."""
        written, found, size = self.environment.written, self.environment.found, 0
        written.clear()
        found.clear()
        values = dict(self.specials, messages=messages, tools=tools, documents=None, add_generation_prompt=prompt)
        for part in self.template.generate(values):
            written.append(part)
            size += len(part)
            if size > MOST_TEXT:
                raise TooLong(f"renders more than {MOST_TEXT:,} characters")
        return "".join(written)

    def answer(self, messages: list, tools) -> dict:
        """The answer to a request, without `error`."""
        text = self.render(messages, tools)
        found = None
        if self.tagged:
            found = [[start, start + len(part)] for start, part in self.environment.found if part]
            if any(text[start : start + len(part)] != part for start, part in self.environment.found):
                return {"error": "its {% generation %} stands inside a macro, a call or a block that is written later; move it out"}
        starts = [0, *(self._prefix(text, messages[:count], tools) for count in range(1, len(messages)))]
        prompts, flaw = [None] * len(messages), None
        if found is None:
            for number, message in enumerate(messages):
                if message["role"] in ANSWERED:
                    prompts[number] = self._prefix(text, messages[:number], tools, prompt=True)
                    flaw = flaw or self._flaw(text, messages, number, tools, prompts[number])
        return {"text": text, "generation": found, "starts": starts, "prompts": prompts, "flaw": flaw}

    def _try(self, messages: list, tools, prompt: bool = False) -> str | None:
        """The text of part of a conversation; None where the template refuses it."""
        import jinja2

        try:
            return self.render(messages, tools, prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError):
            return None

    def _prefix(self, text: str, messages: list, tools, prompt: bool = False) -> int | None:
        """The length of the text of some first messages, a trailing EOS apart, where it is a prefix of the whole text."""
        part = self._try(messages, tools, prompt)
        for head in () if part is None else (part, part.removesuffix(self.specials.get("eos_token") or "\0")):
            if text.startswith(head):
                return len(head)
        return None

    def _flaw(self, text: str, messages: list, number: int, tools, begin: int | None) -> str | None:
        """Why the part after the prompt is not what the model is to write; None if it is, or if this cannot be told."""
        content = messages[number].get("content")
        if begin is None or not isinstance(content, str) or not content.strip():
            return None
        if self._try(messages[:number], tools, True) != self._try(messages[:number], tools, False):
            return None  # the template writes a header for the answer to come, and what follows it is the answer
        header, found, _ = text[begin:].partition(content.strip())
        if not found:
            return f"it does not write the content of message {number + 1} as it is"
        if header.strip():
            return f"it writes {header.strip()[:40]!r} before the answer, which is not a prompt that add_generation_prompt adds"
        if number == len(messages) - 1:
            longer = self._try([*messages, {"role": "user", "content": "x"}], tools)
            if longer is not None and not longer.startswith(text.removesuffix(self.specials.get("eos_token") or "\0")):
                return "it writes the header of a next answer after the last one also without add_generation_prompt"
        return None


def _ends(_, __):
    raise TooLong("takes too long")


def answer(request: dict, compiled: dict) -> dict:
    """The answer to a request; compiled: renderers of earlier requests."""
    import jinja2

    signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])
    try:
        key = json.dumps([request["template"], request["specials"]])
        if key not in compiled:
            compiled[key] = Renderer(request["template"], request["specials"])
        return compiled[key].answer(request["messages"], request["tools"])
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"is not a template of Jinja (line {error.lineno}: {error.message})"}
    except TooLong as error:
        limit = f" ({request['seconds']:g} s of processor time are the limit)" if "too long" in str(error) else ""
        return {"error": f"{error}{limit}; correct the template, or remove the record"}
    except MemoryError:
        return {"error": f"requires more than {MOST_MEMORY >> 30} GiB of memory; correct the template, or remove the record"}
    except RecursionError:
        return {"error": "calls itself without end"}
    except Exception as error:  # a template can raise anything
        return {"error": f"refuses it: {' '.join(str(error).split())[:300] or type(error).__name__}"}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def serve() -> None:
    """Answers requests until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, _ends)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    compiled: dict = {}
    while len(size := sys.stdin.buffer.read(8)) == 8:
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(size, "little")))
        content = json.dumps(answer(request, compiled)).encode()
        sys.stdout.buffer.write(len(content).to_bytes(8, "little") + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
