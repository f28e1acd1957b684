"""lm-eval's own client of completions, as a user would call it, on a real server."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="the extra play is not installed")
pytest.importorskip("uvicorn", reason="the extra play is not installed")
pytest.importorskip("lm_eval", reason="the extra harness is not installed")
pytest.importorskip("tenacity", reason="lm-eval's client requires tenacity, of the extra test")

from tests.play.serving import make_run, serving


@pytest.mark.slow
def test_the_client_of_lm_eval_gets_the_texts_of_the_server(small_corpus, tmp_path):
    """A task that generates: the client sends texts, stop strings, a seed and fields of its own, several requests at once."""
    texts = ["It was", "The run", "A"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text, "target": ""}) + "\n" for text in texts))
    task = {
        "task": "write",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["zz"], "do_sample": False, "max_gen_toks": 8, "temperature": 1.0, "steps": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "write.yaml").write_text(json.dumps(task))
    run = make_run(tmp_path / "tiny", small_corpus)
    with serving(run) as server:
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        client = f"base_url={url},model=tiny,tokenizer_backend=none,tokenized_requests=False,num_concurrent=3,eos_string=<eos>"
        words = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", client, "--tasks", "write"]
        words += ["--include_path", str(tmp_path), "--log_samples", "--output_path", str(tmp_path / "out")]
        environment = os.environ | {"OPENAI_API_KEY": server.token, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        (file,) = (tmp_path / "out").glob("**/samples_write_*.jsonl")
        samples = {sample["doc"]["text"]: sample["resps"][0][0] for sample in map(json.loads, file.read_text().splitlines())}
        asked = {"model": "tiny", "max_tokens": 8, "temperature": 1.0, "steps": 4, "stop": ["zz", "<eos>"], "seed": 1234}
        assert samples == {text: server.json("/v1/completions", asked | {"prompt": text})["choices"][0]["text"] for text in texts}
