"""A real server process on loopback, of runs that are initialised and not trained, and requests to it."""

import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from dlmjax import config as config_lib
from dlmjax.data import Corpus
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.training import Checkpoints
from tests.models.tiny import lively

LENGTH = 16


def make_run(root: pathlib.Path, corpus: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A workdir with the weights of a small network, as training leaves it."""
    config = config_lib.default()
    config.data.update(length=LENGTH, paths=(str(corpus),))
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8)
    config.train.ema = 0.0
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    experiment = assemble(config, Corpus.open(corpus).tokenizer, devices=jax.devices()[:1])
    claim_workdir(root, config, experiment.tokenizer)
    with Checkpoints(root / "checkpoints") as checkpoints:
        checkpoints.save(3, {"params": lively(experiment.init(jax.random.key(0)))}, {"step": 3})
    return root


class Server:
    """A started server: its process, address and token."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process, self.url = process, url
        address, self.token = url.split("/?token=")
        self.port = int(address.rpartition(":")[2])

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The connection and the answer, whose body is not yet read. A body that is no text or bytes becomes JSON."""
        connection = self.connection()
        content = body if isinstance(body, bytes | str | None) else json.dumps(body)
        connection.request(method, path, content, {"Authorization": f"Bearer {self.token}"} | headers)
        return connection, connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        connection, answer = self.send(method, path, body, **headers)
        with contextlib.closing(connection):
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def json(self, path: str, body: Any = None) -> Any:
        """The JSON of an answer that is not refused."""
        status, content, _ = self.ask("GET" if body is None else "POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, path: str, body: Any, status: int = 400) -> str:
        """The one line of a refusal."""
        found, content, _ = self.ask("POST", path, body)
        error = json.loads(content)["error"]
        line = error["message"] if isinstance(error, dict) else error
        assert found == status and line and "\n" not in line and len(line) <= 1500, (found, content[:300])
        return line

    def sample(self, **body: Any) -> list[dict[str, Any]]:
        """The JSON lines of a sample."""
        status, content, _ = self.ask("POST", "/api/sample", body)
        assert status == 200, content
        return [json.loads(line) for line in content.splitlines()]

    def events(self, **body: Any) -> list[Any]:
        """The events of a stream of completions, without the last one, [DONE]."""
        status, content, headers = self.ask("POST", "/v1/completions", {"stream": True} | body)
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), content
        parts = [part.removeprefix("data: ") for part in content.decode().strip().split("\n\n")]
        assert parts.pop() == "[DONE]"
        return [json.loads(part) for part in parts]

    def raw(self, content: bytes, seconds: float = 5) -> bytes:
        """What a socket answers to bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as sent:
            sent.sendall(content)
            answer = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := sent.recv(65536):
                    answer += part
            return answer

    def memory(self) -> int:
        """Resident memory, bytes."""
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(*words: Any) -> Iterator[Server]:
    """A server of `dlmjax play` with these words, ended afterwards; a line on its standard error is a failure."""
    environment = os.environ | {"NPROC": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "dlmjax", "play", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = process.stdout.readline().strip()
        assert "/?token=" in url, process.stderr.read()
        yield Server(process, url)
        assert process.poll() is None, process.stderr.read()
    finally:
        process.send_signal(2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        errors = process.stderr.read()
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0 and not errors, errors


def until(condition, seconds: float = 20) -> bool:
    """Whether a condition holds before the seconds are over."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(found)
