"""How Whisper writes: the rules on what may come next, greedy and beam search, sampling, and fall-back (paper, section
4.5).

memory -> tokens of one window, with the average log-probability and the probability that nobody spoke
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vivavoce.asr.whisper import Memory, TextDecoder
from vivavoce.asr.whisper_tokens import TIMESTAMP_STEP, WhisperTokens
from vivavoce.nn.attention import reorder
from vivavoce.search.sampling import period


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """One pass over a window. Zero temperature with ``beams`` 1 is greedy; above zero the best of ``samples`` draws is
    kept.

    ``length_penalty`` None divides by the length, else by ((5 + length) / 6) ** penalty. ``prompt`` are tokens of
    earlier text, ``prefix`` tokens that the answer must begin with. ``max_tokens`` None is half of the text context.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: bool = True
    temperature: float = 0.0
    beams: int = 1
    samples: int = 1
    patience: float = 1.0
    length_penalty: float | None = None
    prompt: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    max_tokens: int | None = None
    max_initial_timestamp: float | None = 1.0  # seconds
    suppress: tuple[int, ...] | None = None  # None: the published list
    suppress_blank: bool = True
    max_repeats: int | None = None  # stop a row that says the same more often than this in a row


@dataclass(frozen=True)
class Decoded:
    """The tokens of one window (timestamps included, end excluded)."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float = 0.0
    looped: bool = False  # stopped because it repeated itself

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over bytes after zlib: above about 2.4 it repeats itself."""
        data = self.text.encode("utf-8")
        return len(data) / len(zlib.compress(data)) if data else 0.0


class Rules:
    """Masks logits in place by what the tokens so far allow."""

    def __init__(self, tokens: WhisperTokens, options: DecodingOptions, vocab_size: int):
        self.special = tokens.special
        self.timestamps = options.timestamps
        suppressed = tokens.suppressed if options.suppress is None else options.suppress
        banned = [*suppressed, *([self.special.no_timestamps] if options.timestamps else [])]
        self.banned = torch.tensor([i for i in banned if 0 <= i < vocab_size], dtype=torch.long)
        self.blank = torch.tensor(tokens.blank, dtype=torch.long) if options.suppress_blank else None
        self.latest_start = None
        if options.max_initial_timestamp is not None:
            self.latest_start = self.special.first_timestamp + round(options.max_initial_timestamp / TIMESTAMP_STEP)

    def __call__(self, logits: Tensor, written: list[list[int]]) -> Tensor:
        """logits (N, V); ``written`` holds the N sequences since the start sequence."""
        minus = float("-inf")
        logits[:, self.banned] = minus
        if self.blank is not None and not written[0]:
            logits[:, self.blank] = minus
        if self.timestamps:
            for row, tokens in zip(logits, written, strict=True):
                self._pair_timestamps(row, tokens, minus)
        return logits

    def _pair_timestamps(self, row: Tensor, tokens: list[int], minus: float) -> None:
        first, end = self.special.first_timestamp, self.special.end
        last_was = bool(tokens) and tokens[-1] >= first
        if last_was and (len(tokens) < 2 or tokens[-2] >= first):
            row[first:] = minus  # a pair is complete: text must follow
        elif last_was:
            row[:end] = minus  # a segment was closed: the next one opens, or all ends
        stamps = [token for token in tokens if token >= first]
        if stamps:
            # times never run back, and a segment is not empty
            lowest = stamps[-1] if last_was and not (len(tokens) < 2 or tokens[-2] >= first) else stamps[-1] + 1
            row[first:lowest] = minus
        if not tokens:
            row[:first] = minus
            if self.latest_start is not None:
                row[self.latest_start + 1 :] = minus
        # more weight on all times together than on the likeliest text: then a time is due
        if torch.logsumexp(row[first:], 0) > row[:first].max():
            row[:first] = minus


def decode(decoder: TextDecoder, tokens: WhisperTokens, memory: Memory, options: DecodingOptions,
           generator: torch.Generator | None = None) -> list[Decoded]:  # fmt: skip
    """Write every window of ``memory`` (batch B) under the same options: B results."""
    sequence = _initial_tokens(decoder, tokens, options)
    context = decoder.positions.shape[0]
    limit = min(options.max_tokens or context // 2, context - len(sequence))
    batch = memory.values[0].shape[0]
    group = options.samples if options.temperature > 0 else options.beams
    rules = Rules(tokens, options, decoder.embedding.num_embeddings)

    state = decoder.init_state(batch, len(sequence) + limit)
    start = torch.tensor([sequence] * batch)
    x, state, _ = decoder.hidden(start, state, memory, len(sequence))
    at_start = sequence.index(tokens.special.start)
    no_speech = decoder.head(x[:, at_start]).softmax(-1)[:, tokens.special.no_speech].tolist()
    logits = decoder.head(x[:, -1])
    if group > 1:
        rows = torch.arange(batch).repeat_interleave(group)
        state = tuple(reorder(cache, rows, len(sequence)) for cache in state)
        logits = logits[rows]

    end = tokens.special.end
    beams = options.temperature == 0 and group > 1
    written = _Beams(batch, group, end, options) if beams else _Draws(batch, group, end, options, generator)
    span = len(sequence)
    for _ in range(limit):
        rules(logits, written.rows)
        rows = written.extend(logits)
        if written.complete or span + 1 >= len(sequence) + limit:
            break
        if rows is not None:
            state = tuple(reorder(cache, rows, span) for cache in state)
        span += 1
        logits, state = decoder.step(written.last()[:, None], state, memory, span)
    return [
        Decoded(
            tuple(ids),
            tokens.decode(ids).strip(),
            total / (len(ids) + 1),
            silent,
            options.temperature,
            _loops(ids, options),
        )
        for (ids, total), silent in zip(written.best(), no_speech, strict=True)
    ]


def _initial_tokens(decoder: TextDecoder, tokens: WhisperTokens, options: DecodingOptions) -> list[int]:
    sequence = tokens.start_sequence(options.language, options.task, options.timestamps)
    context = decoder.positions.shape[0]
    if options.prefix:
        room = context // 2 - (options.max_tokens or context // 2)
        sequence = [*sequence, *(options.prefix[-room:] if room > 0 else options.prefix)]
    if options.prompt:
        sequence = [tokens.special.start_of_previous, *options.prompt[-(context // 2 - 1) :], *sequence]
    return sequence


def _loops(tokens: Sequence[int], options: DecodingOptions) -> bool:
    return options.max_repeats is not None and period(tokens, 32, options.max_repeats) > 0


class _Draws:
    """Greedy search (one row a window) and sampling (several): each row grows on its own."""

    def __init__(self, batch: int, group: int, end: int, options: DecodingOptions, generator: torch.Generator | None):
        self.group, self.end, self.options, self.generator = group, end, options, generator
        self.rows: list[list[int]] = [[] for _ in range(batch * group)]
        self.total = torch.zeros(batch * group)
        self.ended = [False] * (batch * group)

    def extend(self, logits: Tensor) -> None:
        if self.options.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            odds = torch.softmax(logits / self.options.temperature, -1)
            chosen = torch.multinomial(odds, 1, generator=self.generator)[:, 0]
        gained = logits.gather(1, chosen[:, None])[:, 0] - torch.logsumexp(logits, -1)
        for i, token in enumerate(chosen.tolist()):
            if not self.ended[i]:
                self.total[i] += gained[i]
                self.ended[i] = token == self.end
            if not self.ended[i]:
                self.rows[i].append(token)
                self.ended[i] = _loops(self.rows[i], self.options)
        self._last = torch.where(torch.tensor(self.ended), self.end, chosen)

    def last(self) -> Tensor:
        return self._last

    @property
    def complete(self) -> bool:
        return all(self.ended)

    def best(self) -> list[tuple[list[int], float]]:
        """Per window the row with the best score."""
        results = []
        for first in range(0, len(self.rows), self.group):
            rows = range(first, first + self.group)
            best = max(rows, key=lambda i: _score(float(self.total[i]), len(self.rows[i]), self.options))
            results.append((self.rows[best], float(self.total[best])))
        return results


class _Beams:
    """Beam search: every beam proposes beams + 1 continuations, which are ranked together."""

    def __init__(self, batch: int, group: int, end: int, options: DecodingOptions):
        self.group, self.end, self.options = group, end, options
        self.rows: list[list[int]] = [[] for _ in range(batch * group)]
        self.total = torch.zeros(batch * group)
        self.finished: list[dict[tuple[int, ...], float]] = [{} for _ in range(batch)]
        self.wanted = round(group * options.patience)

    def extend(self, logits: Tensor) -> Tensor:
        """Grow all windows by one token; returns which row each new row came from."""
        values, ids = torch.topk(logits, self.group + 1, dim=-1)
        values = (values - torch.logsumexp(logits, -1, keepdim=True) + self.total[:, None]).tolist()
        ids = ids.tolist()
        rows: list[list[int]] = []
        totals: list[float] = []
        sources: list[int] = []
        for window, finished in enumerate(self.finished):
            members = range(window * self.group, (window + 1) * self.group)
            proposals: dict[tuple[int, ...], tuple[float, int]] = {}
            for i in members:  # equal sequences (all beams, at the first step) count once
                for value, token in zip(values[i], ids[i], strict=True):
                    proposals[(*self.rows[i], token)] = (value, i)
            kept = 0
            newly: dict[tuple[int, ...], float] = {}
            for sequence, (value, source) in sorted(proposals.items(), key=lambda item: -item[1][0]):
                if sequence[-1] == self.end:
                    newly[sequence[:-1]] = value
                    continue
                rows.append(list(sequence))
                totals.append(value)
                sources.append(source)
                kept += 1
                if kept == self.group:
                    break
            for sequence, value in newly.items():
                if len(finished) >= self.wanted:
                    break
                finished[sequence] = value
        self.rows, self.total = rows, torch.tensor(totals)
        return torch.tensor(sources)

    def last(self) -> Tensor:
        return torch.tensor([row[-1] for row in self.rows])

    @property
    def complete(self) -> bool:
        return all(len(finished) >= self.wanted for finished in self.finished)

    def best(self) -> list[tuple[list[int], float]]:
        results = []
        for window, finished in enumerate(self.finished):
            members = range(window * self.group, (window + 1) * self.group)
            for i in sorted(members, key=lambda i: -float(self.total[i])):
                if len(finished) >= self.group:
                    break
                finished.setdefault(tuple(self.rows[i]), float(self.total[i]))
            sequence = max(finished, key=lambda s: _score(finished[s], len(s), self.options))
            results.append((list(sequence), finished[sequence]))
        return results


def _score(total: float, length: int, options: DecodingOptions) -> float:
    penalty = max(1, length) if options.length_penalty is None else ((5 + length) / 6) ** options.length_penalty
    return total / penalty


@dataclass(frozen=True, kw_only=True)
class FallbackOptions:
    """When a pass is not trusted and is tried again at a higher temperature; None turns a rule off."""

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float | None = 2.4
    avg_logprob: float | None = -1.0
    no_speech: float | None = 0.6
    samples: int = 5
    doubt: float | None = None  # average log-probability below which a greedy pass is searched again
    beams: int = 5  # with so many beams

    def distrusts(self, result: Decoded) -> bool:
        """Repeats itself or is improbable, unless it is silence that is improbable."""
        if result.looped:
            return True
        if self.compression_ratio is not None and result.compression_ratio > self.compression_ratio:
            return True
        improbable = self.avg_logprob is not None and result.avg_logprob < self.avg_logprob
        silent = self.no_speech is not None and result.no_speech_prob > self.no_speech
        return improbable and not silent


def decode_with_fallback(
    decoder: TextDecoder,
    tokens: WhisperTokens,
    memory: Memory,
    options: DecodingOptions,
    fallback: FallbackOptions,
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """Decode all windows together; doubtful ones are searched again with beams, distrusted ones at rising temperatures.

    If every temperature fails, the most probable of the passes that do not repeat themselves is kept, else the last.
    """
    results = decode(decoder, tokens, memory, replace(options, temperature=fallback.temperatures[0]), generator)
    for i, first in enumerate(results):
        tried = [first]
        alone = Memory(tuple(k[i : i + 1] for k in memory.keys), tuple(v[i : i + 1] for v in memory.values))
        if fallback.doubt is not None and options.beams == 1 and (first.looped or first.avg_logprob < fallback.doubt):
            wider = decode(decoder, tokens, alone, replace(options, temperature=0.0, beams=fallback.beams))[0]
            if fallback.distrusts(first) or wider.avg_logprob > first.avg_logprob:
                tried.append(wider)
        for temperature in fallback.temperatures[1:]:
            if not fallback.distrusts(tried[-1]):
                break
            hotter = replace(options, temperature=temperature, beams=1, samples=fallback.samples)
            tried += decode(decoder, tokens, alone, hotter, generator)
        results[i] = tried[-1]
        if fallback.distrusts(tried[-1]) and fallback.compression_ratio is not None:
            limit = fallback.compression_ratio
            calm = [result for result in tried if result.compression_ratio <= limit and not result.looped]
            results[i] = max(calm or tried[-1:], key=lambda result: result.avg_logprob)
    return results


def detect_language(decoder: TextDecoder, tokens: WhisperTokens, memory: Memory) -> list[dict[str, float]]:
    """Probability of every language the model knows, for each window; English-only models are certain."""
    batch = memory.values[0].shape[0]
    if not tokens.multilingual:
        return [{"en": 1.0}] * batch
    logits, _ = decoder.step(torch.full((batch, 1), tokens.special.start), decoder.init_state(batch, 1), memory, 1)
    codes = list(tokens.special.languages)
    odds = logits[:, [tokens.special.languages[code] for code in codes]].softmax(-1)
    return [dict(zip(codes, row.tolist(), strict=True)) for row in odds]
