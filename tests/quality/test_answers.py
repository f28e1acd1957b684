"""Answers to the prompts of a corpus: prompts stay, an answer ends with its end, and the report counts what it says."""

import json

import numpy as np
import pytest

from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from dlmjax.quality.answers import Answers, Question, _canvas, answer, end_ids, last_part, questions_of, report

LENGTH, EOS = 32, 258  # of `masked_run`


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers")
    records = [{"prompt": f"what is {i}", "answer": f"it is #### {i},000" if i % 2 else "no" * 20} for i in range(6)]
    (root / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare([root / "a.jsonl"], "bytes", root / "data", format="prompt-answer", progress=False)
    return Corpus.open(root / "data")


def test_questions_are_the_prompts_and_answers_that_fit(corpus):
    found = questions_of(corpus, 100, LENGTH)
    said = [(corpus.tokenizer.decode(q.prompt_P), corpus.tokenizer.decode(q.answer_A)) for q in found]
    assert said == [(f"what is {i}\n", f"it is #### {i},000") for i in (1, 3, 5)] and all(q.answer_A[-1] == EOS for q in found)
    assert len(questions_of(corpus, 2, 64)) == 2 and end_ids(found, corpus.tokenizer) == [EOS]
    with pytest.raises(InputError, match="no prompt with an answer that fits into 8 tokens"):
        questions_of(corpus, 1, 8)


def test_a_corpus_without_answers_is_refused(small_corpus):
    with pytest.raises(InputError, match="has no answers"):
        questions_of(Corpus.open(small_corpus), 1, LENGTH)


def test_answers_follow_their_prompts_and_stop_at_their_end(corpus, masked_run):
    """The sampled rows themselves: every made token is behind the prompt, and the end is the first of the ids that end answers."""
    questions = questions_of(corpus, 3, LENGTH)
    canvas = _canvas(questions, LENGTH, 256)
    assert (canvas.condition_mask_BL.sum(axis=1) == [len(q.prompt_P) for q in questions]).all()
    whole = answer(masked_run, questions, masked_run.sample_settings(steps=4), batch=2)
    for question, tokens_N, ended in zip(questions, whole.tokens, whole.ended, strict=True):
        assert ended == (tokens_N[-1] == EOS) and (tokens_N[:-1] != EOS).all()
        assert ended or len(tokens_N) == LENGTH - len(question.prompt_P)
        assert not np.isin(tokens_N, masked_run.suppressed_ids).any()
    # A network that makes nothing but ends: each answer is one token. (The other ids are suppressed.)
    others = tuple(i for i in range(259) if i != EOS)
    ends = answer(masked_run, questions, masked_run.sample_settings(steps=4, suppressed_ids=others))
    assert [tokens_N.tolist() for tokens_N in ends.tokens] == [[EOS]] * 3 and ends.ended == (True,) * 3


def test_the_report_counts_ends_marks_and_matches(corpus):
    tokenizer = corpus.tokenizer
    texts = ["x #### 1,000", "#### 3", "#### 5000", "5000"]
    real = [Question(np.arange(3), np.append(tokenizer.encode(f"so #### {n}"), EOS)) for n in ("1000", "3", "5", "5000")]
    made = tuple(np.append(tokenizer.encode(text), [EOS, EOS + 1][: 1 + (text == texts[0])]) for text in texts)  # one with an id of a tail
    found = report(real, Answers(made, (True, True, True, False), 9), tokenizer, "####")
    assert (found["exact"], found["marked"], found["without_end"], found["calls"]) == (0.5, 0.75, 0.25, 9)
    assert found["length_made"]["mean"] == np.mean([len(tokens_N) for tokens_N in made])
    assert found["length_data"]["quantiles"]["0.5"] == np.median([len(q.answer_A) for q in real])
    assert last_part("a #### 1 #### 2,5 ", "####") == "25" and last_part("1", "####") is None
