"""Search at inference: several candidates for each prompt, of which one is chosen. `SEARCHES` names the ways; one wrapper for any sampler.

    best     n candidates from n seeds; the one with the highest score
    votes    n candidates of n seeds, with each of several block sizes; the answer that most of them give (HEX 2510.05040). over=steps: one
             sample, whose completed text votes at every step (2508.09138)
    smc      particles that are weighted by a reward while they are sampled, and resampled by their weights; a draw by weight is returned
    beam     the best states after each step go on, each in several ways; the best finished text
    paths    neighbours of the best sample so far, which differ from it in the noise of some steps; the best of all

Candidate j is the sample of seed + 65536 j: candidate 0 is the sample without a search, and a search replays from its list of seeds. A
candidate of `paths` has a seed for each prompt and step. `smc` and `beam` change a run between two steps: their states are rows of one
canvas, state by state, so that prompt p of P has the rows p, P + p, 2 P + p, ...; draws by weight take the key
fold_in(fold_in(fold_in(key(seed), p), step), 6).

What a search states: `best`, `beam` and `paths` return the best text of those that they finish, `votes` the most frequent, and no more.
`smc` with the reward r draws from q(x) exp(r(x)) / Z as the particles become many, q = the distribution of the sampler: weights
exp(r_k - r_{k-1}) telescope to exp(r(x)), whatever r is before the end. With the reward `confidence`, the log-probabilities that revealed
tokens had, times `power` it draws from q(x)^(1 + power) / Z where one token is revealed a step in a fixed order: sharpened (2602.01849).

Shapes: P prompts, N candidates, B rows = N x P, L positions.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Counts, Samples, State
from dlmjax.sampling.search_kinds import Beam, Paths, Smc, Votes, make_search
from dlmjax.sampling.search_paths import kept_rows, neighbour_of, pivots_of
from dlmjax.seeds import following

APART = 1 << 16  # between the seeds of two candidates: nearer ones are those of further batches
SEARCH_KEY = 6

Scores = Float[np.ndarray, "P N"]
Score = Callable[[Sequence[Samples]], "np.ndarray | Judged"]  # candidates, each of P rows -> [P, N], higher is better
Answer = Callable[[Int[np.ndarray, "L"]], str | None]  # the answer in a text; None = none
Reward = Callable[[State], np.ndarray]  # a state of B rows -> [B], nats
Seeds = Int[np.ndarray, "P S"]  # of each step of each prompt


class Judged(NamedTuple):
    """Scores of candidates, and the forward passes that each took; scores alone are of a function that is called once for each."""

    scores_PN: Scores
    passes_PN: np.ndarray | int = 1


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found. samples: the chosen texts.  candidates: all of them, each of P rows.  scores_PN: what decided: scores, shares of
    votes, or normalised weights.  chosen_P: which.  seeds: of each candidate, one, or one for each prompt and step, from the start on.
    blocks: block size of each, 0 = the whole canvas.  calls: network calls of all candidates, per prompt."""

    samples: Samples
    candidates: tuple[Samples, ...]
    scores_PN: Scores
    chosen_P: Int[np.ndarray, "P"]
    seeds: tuple[int | Seeds, ...]
    blocks: tuple[int, ...]
    calls: int
    search: str

    @property
    def score(self) -> float:
        """Score of the chosen candidates, mean over prompts."""
        return float(np.take_along_axis(self.scores_PN, self.chosen_P[:, None], axis=1).mean())

    def seed_of(self, candidate: int, prompt: int) -> int | list[int]:
        """The seed of a candidate, or those of its steps."""
        seed = self.seeds[candidate]
        return seed if isinstance(seed, int) else seed[prompt].tolist()

    def to_json(self, text: Callable[[np.ndarray], str]) -> dict[str, Any]:
        """JSON-ready record: for each prompt every candidate with text, ids, score and seed, and which was chosen."""
        rows = [
            {
                "chosen": int(chosen),
                "candidates": [
                    {
                        "text": text(each.tokens_BL[p]),
                        "token_ids": each.tokens_BL[p].tolist(),
                        "score": plain(score),
                        "seed": self.seed_of(j, p),
                        "block": block,
                    }
                    for j, (each, score, block) in enumerate(zip(self.candidates, self.scores_PN[p], self.blocks, strict=True))
                ],
            }
            for p, chosen in enumerate(self.chosen_P)
        ]
        return {"search": self.search, "calls": self.calls, "prompts": rows}


class Searcher:
    """Runs one search with a sampler.

    score: what `Best` and `Paths` rank by.  answer: what a text votes for.  reward: of the states of `Smc` and `Beam`.
    Raises InputError: a sampler that the search does not support.
    """

    def __init__(
        self,
        text: str,
        sampler: Any,
        *,
        score: Score | None = None,
        answer: Answer | None = None,
        reward: Reward | None = None,
    ):
        self.text, self.search, self.sampler = text, make_search(text), sampler
        self.score, self.answer, self.reward = score or confidence, answer or (lambda tokens_L: repr(tokens_L.tolist())), reward
        by_step = isinstance(self.search, Votes) and bool(self.search.blocks or self.search.over == "steps")
        whole = isinstance(self.sampler, Sampler) and not (self.sampler.keeps_rows or self.sampler.drafts)
        if (by_step or isinstance(self.search, Smc | Beam | Paths)) and not whole:
            raise InputError(
                f"search {text} requires a sampler of the whole canvas, step by step; leave out blocks, a stride, cache and draft"
            )
        if by_step:
            if self.sampler.rule is None or self.sampler.causal:
                raise InputError(f"search {text} requires a rule that reveals masked tokens; give --rule")
            if self.search.blocks and self.sampler.process.time_input:
                raise InputError(f"search {text}: blocks require a network that is not conditioned on t; leave blocks out")

    def sample(self, params, canvas: Canvas, *, seed: int = 0) -> Found:
        """Searches a text for each row of the canvas."""
        if isinstance(self.search, Smc):
            return self._smc(params, canvas, seed)
        if isinstance(self.search, Beam):
            return self._beam(params, canvas, seed)
        if isinstance(self.search, Paths):
            return self._paths(params, canvas, seed)
        if isinstance(self.search, Votes) and self.search.over == "steps":
            return self._over_steps(params, canvas, seed)
        blocks = sorted(getattr(self.search, "blocks", ()), reverse=True) or [0]
        count = self.search.width // len(blocks)
        ways = [(size, following(seed, j * APART)) for size in blocks for j in range(count)]
        candidates = tuple(
            in_blocks(self.sampler, params, canvas, size, each) if size else self.sampler.sample(params, canvas, seed=each)
            for size, each in ways
        )
        scores_PN, passes_P = (self._votes(candidates), 0) if isinstance(self.search, Votes) else self._judged(candidates)
        return self._found(candidates, scores_PN, passes_P, seeds=[each for _, each in ways], blocks=[size for size, _ in ways])

    def texts(self, params, canvas: Canvas, *, seed: int = 0) -> Samples:
        """The chosen texts alone, as a sampler's `sample` returns them."""
        return self.sample(params, canvas, seed=seed).samples

    def _judged(self, candidates: Sequence[Samples]) -> tuple[Scores, Int[np.ndarray, "P"]]:
        """(the scores of candidates, the forward passes that they took for each prompt)."""
        judged = self.score(candidates)
        scores, passes = judged if isinstance(judged, Judged) else Judged(judged)
        scores_PN = np.asarray(scores, np.float64)
        return scores_PN, np.broadcast_to(passes, scores_PN.shape).sum(axis=1)

    def _found(self, candidates, scores_PN, passes_P=0, *, seeds, blocks, chosen_P=None, calls=None, counts=None) -> Found:
        if np.isnan(scores_PN).any():
            raise InputError(f"search {self.text}: a score is not a number; correct the function that gives it")
        chosen_P = np.argmax(scores_PN, axis=1) if chosen_P is None else chosen_P
        calls = sum(each.evaluations for each in candidates) if calls is None else calls
        if counts is None:
            counts = Counts(extra_B=passes_P)
            for each in candidates:
                counts = counts.plus(each.counts)
        samples = dataclasses.replace(chosen_of(candidates, chosen_P), evaluations=calls, counts=counts)
        return Found(samples, tuple(candidates), scores_PN, chosen_P, tuple(seeds), tuple(blocks), calls, self.text)

    def _votes(self, candidates: Sequence[Samples]) -> Scores:
        """Share of the candidates that give the answer of each; none for a text without one. Ties: the larger block, the first seed."""
        answers = [[self.answer(tokens_L) for tokens_L in each.tokens_BL] for each in candidates]
        of_prompt = [Counter(answer for answer in column if answer is not None) for column in zip(*answers, strict=True)]
        return np.array([[votes[row[p]] / len(candidates) for row in answers] for p, votes in enumerate(of_prompt)])

    def _over_steps(self, params, canvas: Canvas, seed: int) -> Found:
        """The vote of the completed texts of one sample. The candidates of a prompt are its answers' newest texts, one per step."""
        states = list(self.sampler.states(params, canvas, seed=seed))[1:]
        texts_SBL = np.stack([*(state.guess_BL for state in states[1:]), states[-1].tokens_BL])
        last, steps = self.sampler.finish(states[-1], canvas, seed), len(texts_SBL)
        candidates = [dataclasses.replace(last, tokens_BL=texts_BL) for texts_BL in texts_SBL]
        weights = [self.search.weight_of(k, steps) for k in range(1, steps + 1)]
        answers = [[self.answer(tokens_L) for tokens_L in texts_BL] for texts_BL in texts_SBL]
        scores_PN = np.zeros((canvas.batch, steps))
        for p in range(canvas.batch):
            own = [row[p] for row in answers]
            total = {
                answer: sum(w for w, other in zip(weights, own, strict=True) if other == answer) for answer in own if answer is not None
            }
            scores_PN[p] = [total.get(answer, 0.0) / sum(weights) for answer in own]
        newest_P = steps - 1 - np.argmax(scores_PN[:, ::-1], axis=1)
        how = {"seeds": [seed] * steps, "blocks": [0] * steps, "chosen_P": newest_P, "calls": int(states[-1].calls)}
        return self._found(candidates, scores_PN, **how, counts=last.counts)

    # --- beams and paths -------------------------------------------------------------------------------------------------------

    def _beam(self, params, canvas: Canvas, seed: int) -> Found:
        """The states of all prompts as rows of one canvas."""
        search, prompts = self.search, canvas.batch
        rows = _repeated(canvas, search.rows)

        def score_of(state: State) -> Scores:
            score_B = mean_log_p(state.confidence_BL, rows.condition_mask_BL) if self.reward is None else self.reward(state)
            return np.asarray(score_B, np.float64).reshape(search.rows, prompts).T

        def look(state: State) -> Int[np.ndarray, "B"] | None:
            if not state.step or state.step % search.every or state.step >= state.steps or search.branch == 1:
                return None
            looks.append(state.step)
            return kept_rows(search, state, score_of(state))

        looks: list[int] = []
        last = self.sampler.run_with(params, rows, seed, look)
        candidates = _states_of(self.sampler.finish(last, rows, seed), search.rows, prompts)
        of_all = {"seeds": [seed] * search.rows, "blocks": [0] * search.rows}
        passes = 0 if self.reward is None else (len(looks) + 1) * search.rows
        return self._found(candidates, score_of(last), passes, **of_all, calls=search.rows * int(last.calls))

    def _paths(self, params, canvas: Canvas, seed: int) -> Found:
        """Rounds of neighbours of each prompt's pivot."""
        search, prompts = self.search, canvas.batch
        seeds = [np.full((prompts, 1), seed, np.int64)]
        candidates = [self.sampler.sample_by_step(params, canvas, seeds[0])]
        seeds[0] = np.repeat(seeds[0], candidates[0].steps + 1, axis=1)
        scores_PN, passes_P = self._judged(candidates)
        for _ in range(search.rounds):
            pivot_PS = pivots_of(seeds, scores_PN)
            new = [neighbour_of(search, pivot_PS, seed, len(seeds) + j, following(seed, (len(seeds) + j) * APART)) for j in range(search.n)]
            made = [self.sampler.sample_by_step(params, canvas, each) for each in new]
            new_PN, spent_P = self._judged(made)
            scores_PN, passes_P = np.concatenate([scores_PN, new_PN], axis=1), passes_P + spent_P
            candidates, seeds = [*candidates, *made], [*seeds, *new]
        return self._found(candidates, scores_PN, passes_P, seeds=seeds, blocks=[0] * len(seeds))

    # --- sequential Monte Carlo ------------------------------------------------------------------------------------------------

    def _smc(self, params, canvas: Canvas, seed: int) -> Found:
        """Particles of all prompts as rows of one canvas."""
        search, prompts = self.search, canvas.batch
        rows = _repeated(canvas, search.particles)
        cloud = _Cloud(search, self.reward or rewarded, prompts, seed)
        last = self.sampler.run_with(params, rows, seed, cloud.look)
        samples = self.sampler.finish(last, rows, seed)
        candidates = _states_of(samples, search.particles, prompts)
        weight_PN, chosen_P = cloud.drawn(last)
        return self._found(
            candidates,
            weight_PN,
            0 if self.reward is None else cloud.looks * search.particles,
            seeds=[seed] * search.particles,
            blocks=[0] * search.particles,
            chosen_P=chosen_P,
            calls=search.particles * int(last.calls),
        )


class _Cloud:
    """The weights of the particles of a run, [P, N] in logs, and the reward that they have had."""

    def __init__(self, search: Smc, reward: Reward, prompts: int, seed: int):
        self.search, self.reward, self.prompts, self.seed = search, reward, prompts, seed
        self.log_w_PN = np.zeros((prompts, search.particles))
        self.had_PN = np.zeros_like(self.log_w_PN)
        self.looks = 0  # calls of the reward

    def look(self, state: State) -> Int[np.ndarray, "B"] | None:
        """The rows that continue in place of the present ones; None = the present ones."""
        if state.step % self.search.every or state.step >= state.steps:
            return None
        self._weigh(state)
        w_PN = normalised(self.log_w_PN)
        few_P = 1 / (w_PN**2).sum(axis=1) < self.search.resample * self.search.particles
        if not few_P.any():
            return None
        parent_PN = np.where(few_P[:, None], self._draws(state.step), np.arange(self.search.particles))
        self.had_PN = np.take_along_axis(self.had_PN, parent_PN, axis=1)
        self.log_w_PN[few_P] = 0.0
        return (parent_PN * self.prompts + np.arange(self.prompts)[:, None]).T.ravel()

    def drawn(self, last: State) -> tuple[np.ndarray, np.ndarray]:
        """(normalised weights at the end, a particle of each prompt, drawn by them)."""
        self._weigh(last)
        return normalised(self.log_w_PN), self._draws(last.step + 1)[:, 0]

    def _weigh(self, state: State) -> None:
        reward_PN = self.search.power * np.asarray(self.reward(state), np.float64).reshape(self.search.particles, self.prompts).T
        if not np.isfinite(reward_PN).all():
            raise InputError(f"search smc: reward {self.search.reward} is not a finite number; correct the function that gives it")
        self.log_w_PN += reward_PN - self.had_PN
        self.had_PN = reward_PN
        self.looks += 1

    def _draws(self, step: int) -> Int[np.ndarray, "P N"]:
        """Particles of each prompt, drawn by their weights."""

        def draw(prompt, log_w_N):
            key = jax.random.key(self.seed)
            for number in (prompt, step, SEARCH_KEY):
                key = jax.random.fold_in(key, number)
            return jax.random.categorical(key, log_w_N, shape=log_w_N.shape)

        return np.asarray(jax.vmap(draw)(jnp.arange(self.prompts), jnp.asarray(self.log_w_PN, jnp.float32)))


def plain(score: float) -> float | None:
    """A score for a record: None where a text has no score, as a text without a token has no likelihood."""
    return float(score) if np.isfinite(score) else None


def normalised(log_w_PN: Scores) -> Scores:
    """Weights of each prompt that sum to 1."""
    w_PN = np.exp(log_w_PN - log_w_PN.max(axis=1, keepdims=True))
    return w_PN / w_PN.sum(axis=1, keepdims=True)


def rewarded(state: State) -> Float[np.ndarray, "B"]:
    """The reward `confidence`: the log-probabilities, nats, that the revealed tokens had when they were revealed."""
    made_BL = ~state.masked_BL & (state.fixed_BL > 0)
    return np.sum(np.log(np.maximum(state.confidence_BL, 1e-30)), axis=1, where=made_BL)


def confidence(candidates: Sequence[Samples]) -> Judged:
    """Mean log-probability, nats, that the tokens of a candidate had when they were revealed."""
    columns = [mean_log_p(each.confidence_BL, each.condition_mask_BL) for each in candidates]
    return Judged(np.stack(columns, axis=1), 0)


def mean_log_p(confidence_BL: Float[np.ndarray, "B L"], condition_mask_BL: Bool[np.ndarray, "B L"]) -> Float[np.ndarray, "B"]:
    """`confidence` of each row. In unfinished texts a masked position counts with its most likely token, so that a state is not better for
    having revealed less."""
    made_BL = ~condition_mask_BL
    sums_B = np.sum(np.log(np.maximum(confidence_BL, 1e-30)), axis=1, where=made_BL)
    return sums_B / np.maximum(made_BL.sum(axis=1), 1)


def in_blocks(sampler: Sampler, params, canvas: Canvas, size: int, seed: int) -> Samples:
    """One sample, block after block from left to right, at most `steps` steps each: the network reads the whole canvas, where later blocks
    are masks (LLaDA 2502.09992 section 2.4)."""
    open_BL, tokens_BL = ~canvas.condition_mask_BL, canvas.tokens_BL.copy()
    tokens_BL[open_BL] = sampler.mask_id
    confidence_BL, fixed_BL = (~open_BL).astype(np.float32), np.zeros(open_BL.shape, np.int32)
    calls, steps, made, counts = 0, 0, None, Counts()
    for number, start in enumerate(range(0, canvas.length, size)):
        now_BL = np.zeros_like(open_BL)
        now_BL[:, start : start + size] = open_BL[:, start : start + size]
        if not now_BL.any():
            continue
        part = dataclasses.replace(canvas, tokens_BL=tokens_BL, condition_mask_BL=~now_BL, start_BL=now_BL.astype(np.float32))
        made = sampler.sample(params, part, seed=following(seed, number))
        tokens_BL = made.tokens_BL.copy()
        confidence_BL = np.where(now_BL, made.confidence_BL, confidence_BL)
        fixed_BL = np.where(now_BL, made.fixed_BL + steps, fixed_BL)
        calls, steps, counts = calls + made.evaluations, steps + made.steps, counts.plus(made.counts)
    if made is None:
        raise InputError("the canvas has no position to fill")
    last = State(steps, steps, 0.0, tokens_BL, np.zeros_like(open_BL), confidence_BL, fixed_BL, calls, counts, made.exit_nats_B)
    return sampler.finish(last, canvas, seed)


def rows_of(samples: Samples, rows: np.ndarray) -> Samples:
    """Some rows of samples."""
    counts = Counts(*(count_B[rows] for count_B in samples.counts))
    return dataclasses.replace(_by_rows(samples, lambda array, _: array[rows]), counts=counts)


def _states_of(samples: Samples, count: int, prompts: int) -> list[Samples]:
    """The `count` states of each prompt that are rows of one canvas, one of each prompt at a time."""
    return [rows_of(samples, np.arange(j * prompts, (j + 1) * prompts)) for j in range(count)]


def chosen_of(candidates: Sequence[Samples], chosen_P: np.ndarray) -> Samples:
    """Row p of candidate `chosen_P[p]`, for every p."""
    rows_P = np.arange(len(chosen_P))
    return _by_rows(candidates[0], lambda _, name: np.stack([getattr(each, name) for each in candidates])[chosen_P, rows_P])


def _by_rows(samples: Samples, change: Callable[[np.ndarray, str], np.ndarray]) -> Samples:
    names = [field.name for field in dataclasses.fields(samples) if isinstance(getattr(samples, field.name), np.ndarray)]
    return dataclasses.replace(samples, **{name: change(getattr(samples, name), name) for name in names})


def _repeated(canvas: Canvas, times: int) -> Canvas:
    """The rows of a canvas `times` times, all of them one after another."""
    names = ("tokens_BL", "condition_mask_BL", "start_BL")
    return dataclasses.replace(canvas, **{name: np.tile(getattr(canvas, name), (times, 1)) for name in names})
