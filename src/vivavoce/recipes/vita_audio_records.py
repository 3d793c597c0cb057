"""Training records of the small VITA-Audio: a corpus of spoken questions, with codes, to prompts and answers.

Three tasks through the published prompts: ``answer`` (a spoken question, answered in text and speech), ``transcribe``
(speech to text) and ``speak`` (text to speech in the one voice). The answering voice is the corpus's set ``teacher``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from torch import Tensor

from vivavoce.codecs.glm4_tokenizer import GLM4Tokenizer
from vivavoce.dialogue.vita_audio_prompts import (
    CLIP,
    LUKE,
    SPEAK,
    TRANSCRIBE,
    Message,
    VITATokens,
    answer_prompt,
    speak_prompt,
    transcribe_prompt,
)
from vivavoce.recipes.spoken_domain import VOCABULARY, questions, sentences
from vivavoce.text.tokenizer import QWEN2_PATTERN, Tokenizer
from vivavoce.train.codes import CodedUtterances, Report

Task = Literal["answer", "transcribe", "speak"]
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|image|>", "<|video|>",
    "<|audio|>",
)  # fmt: skip


def make_tokenizer(codes: int, vocabulary: int = 900) -> Tokenizer:
    """A byte-level BPE tokenizer of Qwen2's form for the domain's words and the prompts, with ``codes`` speech tokens.

    Deterministic: it follows from the domain alone.
    """
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    prompts = [f"{role}\n" for role in ("system", "user", "assistant")] + [LUKE, SPEAK, TRANSCRIBE.replace(CLIP, "")]
    spoken = [text for q in questions(0, 4000) for text in (q.text, q.answer)] + sentences(0, 2000)
    words = [f" {word}" for word in VOCABULARY] + list(VOCABULARY)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    engine.train_from_iterator([*prompts * 400, *spoken, *words * 20], trainer)
    names = [*SPECIALS, *(f"<|audio_{code}|>" for code in range(codes))]
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    numbers = {name: engine.token_to_id(name) for name in names}
    return Tokenizer(engine, {name: number for name, number in numbers.items() if number is not None})


def vocabulary_size(tokens: VITATokens) -> int:
    """The number of tokens, rounded up to a multiple of 8 as published."""
    return -(-(tokens.first_code + tokens.codes) // 8) * 8


@dataclass(frozen=True)
class Record:
    """One example: ``ids`` with ``labels`` (-100 where nothing is learned), and what it is for checks. ``views``: the
    codes of what is heard as it sounds otherwise, if it was encoded more than once; ``prompt`` holds those of the
    first."""

    task: Task
    ids: list[int]
    labels: list[int]
    skill: str
    speaker: str
    heard: str
    answer: str
    prompt: list[int]
    views: tuple[np.ndarray, ...] = ()


class Corpus:
    """All sets with their codes; the voice that answers."""

    def __init__(
        self, folder: Path, tokenizer: GLM4Tokenizer, names: tuple[str, ...], report: Report | None = None,
        views: int = 1,
    ):  # fmt: skip
        # the voice that answers exactly, what is heard quickly: a few codes that differ are a disturbance like others
        self.sets = {
            name: CodedUtterances(folder / name, tokenizer, report, quick=name != "teacher",
                                  views=1 if name == "teacher" else views)
            for name in names
        }  # fmt: skip
        self.spoken: dict[str, list[int]] = {}
        if "teacher" in self.sets:
            teacher = self.sets["teacher"]
            for number, row in enumerate(teacher.corpus.rows):
                if row["kind"] != "book":
                    self.spoken.setdefault(row["text"], teacher.of(number).tolist())


def records(
    corpus: Corpus, tokens: VITATokens, name: str, splits: tuple[str, ...], interleave: tuple[int, ...],
    tasks: tuple[Task, ...] = ("answer", "transcribe", "speak"),
) -> list[Record]:  # fmt: skip
    """The records of one set and some of its splits, in the order of the set, task by task."""
    found, coded = list[Record](), corpus.sets[name]
    for number in (number for split in splits for number in coded.corpus.select(split)):
        row, codes = coded.corpus.rows[number], coded.of(number).tolist()
        views = tuple(coded.of(number, view) for view in range(1, coded.views))
        text, answer = row.get("text") or "", row.get("answer")
        about = {"speaker": str(row.get("speaker")), "heard": text}
        if name == "teacher":
            if "speak" in tasks and row["kind"] != "book":
                messages = [*speak_prompt(text), Message("assistant", CLIP)]
                found.append(_record("speak", messages, [codes], tokens, interleave, "speak", answer=text, **about))
            continue
        if "transcribe" in tasks and text:
            messages = [*transcribe_prompt(), Message("assistant", text)]
            skill = row.get("skill") or row.get("kind") or "real"
            found.append(
                _record("transcribe", messages, [codes], tokens, interleave, skill, answer=text, views=views, **about)
            )
        if "answer" in tasks and answer and answer in corpus.spoken:
            messages = [*answer_prompt(), Message("assistant", f"{answer}\n{CLIP}")]
            clips = [codes, corpus.spoken[answer]]
            skill = row["skill"]
            found.append(
                _record("answer", messages, clips, tokens, interleave, skill, answer=answer, views=views, **about)
            )
    return found


def _record(
    task: Task, messages: list[Message], clips: list[list[int]], tokens: VITATokens, interleave: tuple[int, ...],
    skill: str, *, speaker: str, heard: str, answer: str, views: tuple[np.ndarray, ...] = (),
) -> Record:  # fmt: skip
    ids, labels = tokens.record(messages, clips, interleave, even=True)
    first = next(i for i, label in enumerate(labels) if label >= 0)
    return Record(task, ids, labels, skill, speaker, heard, answer, ids[:first], views)


@dataclass(frozen=True)
class Disturbance:
    """What befalls the speech tokens that are heard, as with unknown voices: a share ``noise`` is put wrong, doubled or
    left out, and a share ``blur`` becomes one of the ``near`` (codes, n) codes most like it."""

    noise: float
    blur: float = 0.0
    near: np.ndarray | None = None


def nearest_codes(tokenizer: GLM4Tokenizer, count: int = 4) -> np.ndarray:
    """The ``count`` rows of the codebook next to each row: (codes, count)."""
    rows = tokenizer.codebook.weight.detach().float().cpu()
    return torch.cdist(rows, rows).argsort(1)[:, 1 : count + 1].numpy()


def batch(
    chosen: list[Record], tokens: VITATokens, random: np.random.Generator, disturbance: Disturbance | None = None
) -> tuple[Tensor, Tensor]:
    """Padded ids and labels (B, T). With a disturbance any of a record's views may be heard."""
    rows, wanted = [], []
    for record in chosen:
        ids, labels = record.ids, record.labels
        if disturbance is not None and record.task != "speak":
            ids, labels = _disturbed(record, tokens, random, disturbance)
        rows.append(torch.tensor(ids))
        wanted.append(torch.tensor(labels))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(wanted, batch_first=True, padding_value=-100)


def _disturbed(
    record: Record, tokens: VITATokens, random: np.random.Generator, disturbance: Disturbance
) -> tuple[list[int], list[int]]:
    noise, prompt = disturbance.noise, np.array(record.prompt)
    places = np.flatnonzero((prompt >= tokens.first_code) & (prompt < tokens.first_code + tokens.codes))
    first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    view = int(random.integers(1 + len(record.views)))
    codes = record.views[view - 1].astype(np.int64) if view else prompt[first:end] - tokens.first_code
    if disturbance.near is not None and disturbance.blur:
        place = random.integers(disturbance.near.shape[1], size=len(codes))
        codes = np.where(random.random(len(codes)) < disturbance.blur, disturbance.near[codes, place], codes)
    heard = codes + tokens.first_code
    draw = random.random(len(heard))
    wrong = tokens.first_code + random.integers(tokens.codes, size=len(heard))
    heard = np.where(draw < 0.5 * noise, wrong, heard)
    times = np.where(draw < 0.5 * noise, 1, np.where(draw < 0.75 * noise, 2, np.where(draw < noise, 0, 1)))
    ids = [*record.prompt[:first], *np.repeat(heard, times).tolist(), *record.prompt[end:]]
    answer = record.ids[len(record.prompt) :]
    return ids + answer, [-100] * len(ids) + record.labels[len(record.prompt) :]
