"""The addresses of a real server on loopback: who may ask, samples step by step, completions, refusals, closed connections."""

import concurrent.futures
import json
import sys
import threading

import pytest

pytest.importorskip("starlette", reason="the extra play is not installed")
pytest.importorskip("uvicorn", reason="the extra play is not installed")

from dlmjax.cli.main import main
from dlmjax.sampling import Trace
from tests.play.serving import LENGTH, make_run, serving, until

LONG = {"template": "", "length": 64, "settings": {"steps": 64, "method": "gibbs(rounds=4000)"}}  # of many steps


@pytest.fixture(scope="module")
def workdir(small_corpus, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("play") / "tiny", small_corpus)


@pytest.fixture(scope="module")
def causal(small_corpus, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("play") / "causal", small_corpus, process__name="autoregressive")


@pytest.fixture(scope="module")
def server(workdir, causal):
    with serving(workdir, causal, "--length", "256", "--queue", "8") as found:
        yield found


def sampled(workdir, tmp_path, *flags):
    """The rows of `dlmjax sample` in this process."""
    file = tmp_path / "sample.json"
    assert main(["sample", "--workdir", str(workdir), "--json", str(file), *map(str, flags)]) == 0
    return json.loads(file.read_text())["samples"]


# --- who may ask ----------------------------------------------------------------------------------------------------------------


def test_a_request_requires_the_token_the_host_and_no_other_origin(server):
    page = f"/?token={server.token}"
    assert server.ask("GET", page, Authorization="")[0] == 200
    for path, headers, status in (
        ("/", {"Authorization": ""}, 401),
        ("/?token=x", {"Authorization": ""}, 401),
        ("/?token=%00%ff", {"Authorization": ""}, 401),
        ("/?" + "a=1&" * 100, {"Authorization": ""}, 401),
        ("/api/runs", {"Authorization": f"Bearer {server.token}x"}, 401),
        ("/api/runs", {"Authorization": f"Basic {server.token}"}, 401),
        (page, {"Host": f"evil.example:{server.port}"}, 403),
        (page, {"Host": "127.0.0.1"}, 403),
        (page, {"Origin": "http://evil.example"}, 403),
    ):
        found, content, found_headers = server.ask("GET", path, **headers)
        assert found == status and b"\n" not in content and "default-src 'none'" in found_headers["content-security-policy"], path
    assert server.ask("GET", "/api/runs", Host=f"localhost:{server.port}", Origin=f"http://localhost:{server.port}")[0] == 200
    assert server.raw(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    for name in ("../server.py", "%2e%2e%2fserver.py", "..%2f__init__.py", "none.js", ""):
        assert server.ask("GET", f"/static/{name}")[0] == 404, name
    assert server.ask("DELETE", "/api/runs")[0] == 405 and server.ask("GET", "/none")[0] == 404


def test_the_page_loads_scripts_and_styles_of_its_own_alone(server):
    status, content, headers = server.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<title>dlmjax play" in content
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"


# --- samples --------------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_what_they_take(server):
    listed = server.json("/api/runs")
    assert listed["limits"]["length"] == 256 and listed["limits"]["body_bytes"] == 2**20
    tiny, causal = listed["runs"]
    assert (tiny["name"], tiny["process"], tiny["masks"], tiny["length"]) == ("tiny", "masked", True, LENGTH)
    assert {"ancestral", "confidence", "threshold"} <= set(tiny["rules"]) and "first_hitting" in tiny["methods"]
    assert causal["rules"] == ["left_to_right"] and causal["methods"] == [] and causal["stops"] == ["end"]


def test_a_template_is_encoded_with_its_holes(server):
    tokens = server.json("/api/encode", {"run": "tiny", "text": "ab[MASK*2]___<"})["tokens"]
    assert [token["id"] for token in tokens] == [97, 98, *[None] * 5, 60]
    assert [token["text"] for token in tokens[:2]] == ["a", "b"] and tokens[0]["held"] and not tokens[2]["held"]


def test_a_sample_comes_step_by_step_and_is_that_of_the_command(server, workdir, tmp_path):
    lines = server.sample(run="tiny", template="It", length=LENGTH, seed=5, settings={"steps": 4, "rule": "random"})
    start, *states, end = lines
    assert start["type"] == "start" and [token["held"] for token in start["tokens"]] == [True] * 2 + [False] * 14
    assert [token["id"] for token in start["tokens"][:3]] == [73, 116, None]
    assert [(state["type"], state["step"], state["steps"]) for state in states] == [("state", step, 4) for step in (1, 2, 3, 4)]
    assert all(len(state[name]) == LENGTH for state in states for name in ("ids", "texts", "confidence"))
    holes = [sum(token is None for token in state["ids"]) for state in states]
    assert holes == sorted(holes, reverse=True) and holes[-1] == 0
    assert end["type"] == "end" and end["calls"] == 4 and end["seed"] == 5 and end["settings"]["rule"] == "random"
    row = sampled(workdir, tmp_path, "--prompt", "It", "--length", LENGTH, "--seed", 5, "--steps", 4, "--rule", "random")[0]
    assert states[-1]["ids"] == row["token_ids"] and end["text"] == row["text"]
    # The trace is that of `--trace`, and opens again.
    record = server.json(f"/api/trace/{end['trace']}?form=json")
    assert Trace.from_json(record).tokens_SBL[-1, 0].tolist() == row["token_ids"]
    status, page, headers = server.ask("GET", f"/api/trace/{end['trace']}")
    assert status == 200 and "attachment" in headers["content-disposition"] and "sandbox" in headers["content-security-policy"]
    for saved in (page, json.dumps(record)):
        opened = server.json("/api/open", saved)
        assert opened["tokens"] == start["tokens"]
        shown = [{name: state[name] for name in ("step", "ids", "texts", "confidence")} for state in opened["states"][1:]]
        assert shown == [{name: state[name] for name in shown[0]} for state in states]
    assert server.ask("GET", "/api/trace/none")[0] == 404


def test_tokens_of_a_canvas_stay_and_holes_are_filled(server):
    canvas = [{"id": 97, "held": True}, {"id": None, "held": False}, {"id": 98, "held": False}, {"id": None}]
    *_, state, _ = server.sample(run="tiny", canvas=canvas, settings={"steps": 2})
    assert state["ids"][0] == 97 and state["ids"][2] == 98 and None not in state["ids"]
    edited = server.sample(run="tiny", canvas=canvas, start_t=0.5, settings={"steps": 2})
    assert [token["id"] for token in edited[0]["tokens"]] == [97, None, 98, None]
    assert [token["held"] for token in edited[0]["tokens"]] == [True, False, False, False]


def test_alternatives_are_the_distribution_of_a_token_given_the_others(server):
    canvas = [{"id": 97}, {"id": 98}, {"id": 99}, {"id": None}]
    found = server.json("/api/alternatives", {"run": "tiny", "canvas": canvas, "position": 1})["alternatives"]
    assert len(found) == 20 and [one["p"] for one in found] == sorted((one["p"] for one in found), reverse=True)
    again = [*canvas[:1], {"id": 120}, *canvas[2:]]  # what stands at the position does not count
    assert server.json("/api/alternatives", {"run": "tiny", "canvas": again, "position": 1})["alternatives"] == found
    # They are what a sampler draws the token from: the probability with which it revealed one.
    *_, state, _ = server.sample(run="tiny", canvas=[*canvas[:1], {"id": None}, *canvas[2:3], {"id": 100}], settings={"steps": 1})
    whole = server.json("/api/alternatives", {"run": "tiny", "canvas": [*canvas[:3], {"id": 100}], "position": 1, "most": 300})
    p = {one["id"]: one["p"] for one in whole["alternatives"]}
    assert len(p) > 250 and sum(p.values()) == pytest.approx(1) and p[state["ids"][1]] == pytest.approx(state["confidence"][1], abs=1e-4)
    cold = server.json("/api/alternatives", {"run": "tiny", "canvas": canvas, "position": 1, "temperature": 0})["alternatives"]
    assert cold[0]["id"] == found[0]["id"] and cold[0]["p"] == pytest.approx(1)
    left = [server.json("/api/alternatives", {"run": "causal", "canvas": row, "position": 1}) for row in (canvas, canvas[:2])]
    assert [one["id"] for one in left[0]["alternatives"]] == [one["id"] for one in left[1]["alternatives"]]
    assert "causal" in server.refused(
        "/api/alternatives", {"run": "causal", "canvas": canvas, "position": 3} | {"canvas": [{}, {}, {}, {}]}
    )


# --- refusals -------------------------------------------------------------------------------------------------------------------

SAMPLE = {"run": "tiny", "template": "a", "length": 8}
REFUSED = [
    ("/api/sample", b"", "not readable JSON"),
    ("/api/sample", b"[]", "not a JSON object"),
    ("/api/sample", b'{"run": "\xff"}', "not UTF-8"),
    ("/api/sample", b'{"run": "\\ud800"}', "surrogate"),
    ("/api/sample", b"[" * 100_000, "nested deeper"),
    ("/api/sample", b'{"seed": NaN}', "not finite"),
    ("/api/sample", b'{"seed": 1e999}', "not finite"),
    ("/api/sample", b'{"run": "tiny", "run": "tiny"}', "twice"),
    ("/api/sample", {"template": "a"}, "give one of tiny, causal"),
    ("/api/sample", {"run": 3, "template": "a"}, "give a text"),
    ("/api/sample", {"run": "tiny", "templat": "a"}, "did you mean 'template'"),
    ("/api/sample", {"run": "tiny"}, "either canvas"),
    ("/api/sample", SAMPLE | {"canvas": [{"id": None}]}, "either canvas"),
    ("/api/sample", SAMPLE | {"length": 257}, "from 1 to 256"),
    ("/api/sample", SAMPLE | {"length": 1e300}, "from 1 to 256"),
    ("/api/sample", SAMPLE | {"length": True}, "from 1 to 256"),
    ("/api/sample", {"run": "tiny", "template": "[MASK*16000000]"}, "1 to 256"),
    ("/api/sample", {"run": "tiny", "template": "[MASK*"}, "not a marker"),
    ("/api/sample", {"run": "tiny", "template": "x" * 9000}, "at most 8,192"),
    ("/api/sample", {"run": "tiny", "template": "___" + "x" * 300}, "1 to 256"),
    ("/api/sample", {"run": "tiny", "canvas": []}, "1 to 256"),
    ("/api/sample", {"run": "tiny", "canvas": [{"id": None}] * 257}, "1 to 256"),
    ("/api/sample", {"run": "tiny", "canvas": [{"id": 97}]}, "nothing to fill"),
    ("/api/sample", {"run": "tiny", "canvas": [{"id": -1}]}, "id is -1"),
    ("/api/sample", {"run": "tiny", "canvas": [{"id": 2**63}]}, "give a whole number"),
    ("/api/sample", {"run": "tiny", "canvas": [{"id": None, "held": 1}]}, "true or false"),
    ("/api/sample", {"run": "tiny", "canvas": {"id": 1}}, "not a list"),
    ("/api/sample", SAMPLE | {"seed": 2**32}, "seed is"),
    ("/api/sample", SAMPLE | {"settings": []}, None),
    ("/api/sample", SAMPLE | {"settings": [1]}, "not a JSON object"),
    ("/api/sample", SAMPLE | {"settings": {"steps": 0}}, "from 1 to 4096"),
    ("/api/sample", SAMPLE | {"settings": {"steps": 5000}}, "from 1 to 4096"),
    ("/api/sample", SAMPLE | {"settings": {"steps": "4"}}, "give a whole number"),
    ("/api/sample", SAMPLE | {"settings": {"stepps": 4}}, "did you mean 'steps'"),
    ("/api/sample", SAMPLE | {"settings": {"rule": "confidance"}}, "did you mean 'confidence'"),
    ("/api/sample", SAMPLE | {"settings": {"rule": "os.system"}}, "not in an imported module|not a class"),
    ("/api/sample", SAMPLE | {"settings": {"rule": "x" * 2000}}, "at most 1,000"),
    ("/api/sample", SAMPLE | {"settings": {"rule": "klass(history=100000000)"}}, "above 65536"),
    ("/api/sample", SAMPLE | {"settings": {"guide": "classifier(of=os.system)"}}, "unknown field 'guide'"),
    ("/api/sample", SAMPLE | {"settings": {"temperature": -1}}, "temperature is -1"),
    ("/api/encode", {"run": "tiny", "text": 3}, "give a text"),
    ("/api/alternatives", {"run": "tiny", "canvas": [{"id": 1}]}, "position is missing"),
    ("/api/alternatives", {"run": "tiny", "canvas": [{"id": 1}], "position": 1}, "from 0 to 0"),
    ("/api/alternatives", {"run": "tiny", "canvas": [{"id": 1}], "position": 0, "temperature": 1e300}, "temperature is"),
    ("/api/open", b"", "not readable JSON"),
    ("/api/open", b"\xff", "not UTF-8"),
    ("/api/open", b"<html>", "no denoising trace"),
    ("/api/open", b"{}", "not a denoising trace"),
    ("/api/open", json.dumps({"format": "dlmjax-trace-1", "first": [[0] * 9000], "changes": [[]] * 9000}), "positions in all states"),
    ("/v1/completions", b"{", "not readable JSON"),
    ("/v1/completions", {"model": "tiny", "promt": "a"}, "did you mean 'prompt'"),
    ("/v1/completions", {"model": "tiny", "prompt": {"a": 1}}, "neither a text nor"),
    ("/v1/completions", {"model": "tiny", "prompt": [[1.5]]}, "neither a text nor"),
    ("/v1/completions", {"model": "tiny", "prompt": [300]}, "id 300"),
    ("/v1/completions", {"model": "tiny", "prompt": []}, "give 1 to 16"),
    ("/v1/completions", {"model": "tiny", "prompt": ["a"] * 17}, "give 1 to 16"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 256}, "1 to 256"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "n": 17}, "from 1 to 16"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 250, "n": 16, "steps": 4096}, "positions"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "logprobs": 1}, "logprobs is not provided"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "presence_penalty": 0.5}, "presence_penalty is not provided"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "stop": [1]}, "stop is a text"),
    ("/v1/completions", {"model": "tiny", "prompt": "a", "stream": "yes"}, "true or false"),
    ("/v1/completions", {"model": "causal", "prompt": "a", "suffix": "b"}, "before a suffix"),
    ("/v1/completions", {"model": "causal", "prompt": "a", "rule": "confidence"}, "requires rule left_to_right"),
]


def test_bad_requests_are_refused_in_one_line_and_the_server_goes_on(server):
    for path, body, said in REFUSED:
        if said is None:
            continue
        line = server.refused(path, body)
        assert any(part in line for part in said.split("|")), (path, str(body)[:100], line)
        assert "--" not in line.partition("dlmjax ")[0], line
    assert server.refused("/v1/completions", {"model": "none", "prompt": "a"}, 404).startswith("model is 'none'")
    line = server.sample(**SAMPLE, settings={"cache": "dual(block=7000)", "sweep": 3, "steps": 2})[-1]
    assert line["type"] in ("error", "end")
    assert server.json("/v1/models")["data"][0]["id"] == "tiny"


def test_large_and_torn_bodies_end_at_once(server):
    head = f"POST /api/sample HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n"
    assert server.raw(f"{head}Content-Length: 99999999999\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    assert server.raw(f"{head}Content-Length: -1\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert server.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks * 17).startswith(b"HTTP/1.1 413")
    for torn in (f"{head}Content-Length: 10\r\n\r\n{{".encode(), b"\x16\x03\x01" * 50, b"POST " + b"x" * 70_000):
        with server_socket(server) as sent:
            sent.sendall(torn)  # and closes
    assert server.json("/v1/models")["object"] == "list"


def server_socket(server):
    import socket

    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


# --- cancelling and a busy sampler ----------------------------------------------------------------------------------------------


def begin(server, **more):
    """A sample of many steps that has begun: its connection, answer and job."""
    connection, answer = server.send("POST", "/api/sample", LONG | {"run": "tiny"} | more)
    start = json.loads(answer.readline())
    assert json.loads(answer.readline())["type"] == "state"
    return connection, answer, start["job"]


def test_a_job_is_cancelled_by_its_name_and_by_a_closed_connection(server):
    connection, answer, job = begin(server)
    assert server.json("/api/cancel", {"job": job}) == {"cancelled": True}
    lines = [json.loads(line) for line in answer.read().splitlines()]
    assert lines[-1] == {"type": "error", "message": "cancelled"} and len(lines) < 4000
    connection.close()
    connection, _, job = begin(server)
    connection.close()  # a tab that is closed
    assert until(lambda: not server.json("/api/cancel", {"job": job})["cancelled"])


def test_closed_connections_of_completions_free_the_worker(server):
    """Where nothing is streamed, the server sees a closed connection while it computes; one of the jobs still waits."""
    long = {"model": "tiny", "prompt": "a", "max_tokens": 63, "steps": 64, "method": "gibbs(rounds=4000)"}
    assert until(lambda: server.json("/api/runs")["jobs"] == 0)
    connections = [server.connection() for _ in range(5)]
    for connection in connections:
        connection.request("POST", "/v1/completions", json.dumps(long), {"Authorization": f"Bearer {server.token}"})
    assert until(lambda: server.json("/api/runs")["jobs"] == 5)
    for connection in connections:
        connection.close()
    assert until(lambda: server.json("/api/runs")["jobs"] == 0)


def test_a_busy_sampler_refuses_and_its_queue_is_freed(server):
    held = [begin(server, tab=str(n)) for n in range(4)]  # all places of the jobs that take turns
    waiting = [server.send("POST", "/api/sample", LONG | {"run": "tiny", "tab": f"w{n}"})[0] for n in range(8)]
    status, content, headers = server.ask("POST", "/api/sample", LONG | {"run": "tiny"})
    assert status == 429 and headers["retry-after"] == "2" and b"busy" in content
    assert server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a"})[0] == 429
    for connection in [*waiting, *(one[0] for one in held)]:
        connection.close()
    assert until(lambda: server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2, "steps": 1})[0] == 200)


# --- completions ----------------------------------------------------------------------------------------------------------------


def test_completions_are_the_samples_of_the_command_bit_for_bit(server, workdir, tmp_path):
    asked = {"model": "tiny", "prompt": "It", "suffix": "n.", "max_tokens": 12, "n": 2, "seed": 7, "steps": 4, "rule": "random"}
    rows = sampled(
        workdir,
        tmp_path,
        *("--prompt", "It", "--suffix", "n.", "--length", LENGTH),
        *("--count", 2, "--seed", 7, "--steps", 4),
        *("--rule", "random"),
    )
    found = server.json("/v1/completions", asked)
    assert found["object"] == "text_completion" and [choice["index"] for choice in found["choices"]] == [0, 1]
    for choice, row in zip(found["choices"], rows, strict=True):
        ids = row["token_ids"][2:14]
        ended = 256 in ids
        whole = bytes(token for token in ids[: ids.index(256)] if token < 256) if ended else bytes(token for token in ids if token < 256)
        assert choice["text"] == whole.decode(errors="replace")
        assert choice["finish_reason"] == ("stop" if ended else "length")
    count = found["usage"]["completion_tokens"]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": count, "total_tokens": count + 4} and 12 <= count <= 24
    assert server.json("/v1/completions", asked | {"prompt": [73, 116]})["choices"] == found["choices"]
    several = server.json("/v1/completions", asked | {"prompt": ["It", "At"], "echo": True})["choices"]
    assert [choice["text"] for choice in several[:2]] == ["It" + choice["text"] for choice in found["choices"]]
    assert [choice["index"] for choice in several] == [0, 1, 2, 3] and several[2]["text"].startswith("At")


@pytest.mark.parametrize(
    "how", [{"model": "tiny", "rule": "random", "steps": 6}, {"model": "tiny", "method": "gibbs(rounds=2)", "steps": 2}]
)
def test_a_stream_is_the_text_in_parts(server, how):
    asked = how | {"prompt": "It", "max_tokens": 14, "seed": 2, "n": 2}
    whole = server.json("/v1/completions", asked)
    events = server.events(**asked, stream_options={"include_usage": True})
    assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []
    for choice in whole["choices"]:
        parts = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]


def test_a_stop_string_ends_a_text_before_it(server):
    asked = {"model": "causal", "prompt": "It", "max_tokens": 14, "seed": 3}
    whole = server.json("/v1/completions", asked)["choices"][0]["text"]
    stop = next(letter for letter in whole[3:] if letter not in whole[:3] and letter != "\ufffd")
    found = server.json("/v1/completions", asked | {"stop": ["never", stop]})
    assert found["choices"][0]["text"] == whole.partition(stop)[0] and found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 14
    events = server.events(**asked, stop=["never", stop])
    assert "".join(event["choices"][0]["text"] for event in events) == whole.partition(stop)[0]
    assert len(events) > 1 or len(whole.partition(stop)[0]) < 5


@pytest.mark.slow
def test_twenty_clients_are_all_answered_and_memory_is_bounded(server):
    """Each asks for samples and completions of its own length: more compiled samplers than are kept."""
    gate = threading.Barrier(20)

    def client(number):
        gate.wait()
        answers = []
        for turn in range(3):
            body = {"model": "tiny", "prompt": "a" * (1 + (number + turn) % 16), "max_tokens": 4, "steps": 2, "seed": number}
            answers.append(until(lambda body=body: answered(server.ask("POST", "/v1/completions", body)), 300))
        return all(answers)

    def answered(found):
        assert found[0] in (200, 429), found
        return found[0] == 200

    def load():
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            return list(pool.map(client, range(20)))

    assert load() == [True] * 20
    before = server.memory()
    gate.reset()
    assert load() == [True] * 20 and server.memory() < before + 200 * 2**20


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_a_taken_port_and_a_missing_extra_are_one_line(server, workdir, monkeypatch, capsys):
    assert main(["play", str(workdir), "--port", str(server.port)]) == 2
    assert f"--port {server.port} cannot be used" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "dlmjax.play.server", raising=False)
    assert main(["play", str(workdir)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "pip install 'dlmjax[play]'" in line
