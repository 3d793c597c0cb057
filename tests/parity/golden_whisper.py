"""Whisper in its three layouts, log-mel, word timing, DTW: against openai-whisper, transformers and CTranslate2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.parity.compare import Case
from vivavoce.align.dtw import dtw, median_filter
from vivavoce.asr.whisper import Memory, Whisper
from vivavoce.asr.whisper_decoding import DecodingOptions, FallbackOptions, decode, detect_language
from vivavoce.asr.whisper_files import load_published
from vivavoce.asr.whisper_recognizer import WhisperRecognizer, sequential_windows
from vivavoce.asr.whisper_timing import (
    Bounds,
    alignment_matrix,
    find_words,
    place_words,
    words_from_matrix,
)
from vivavoce.asr.whisper_tokens import WhisperTokens
from vivavoce.audio.mel import MelFormat, mel_filters, mel_spectrum, whisper_scale
from vivavoce.checkpoints.read import open_checkpoint
from vivavoce.checkpoints.store import installed_file
from vivavoce.errors import MissingWeightsError
from vivavoce.text.tokenizer import Tokenizer

WINDOW = 480_000


def check(folder: Path) -> dict[str, float] | None:
    case = Case(folder)
    if folder.name == "dtw-and-median":
        return _check_dtw(case)
    if folder.name == "whisper-logmel":
        return _check_mel(case)
    english = "english" in folder.name
    own = folder / "tokenizer.json"
    try:
        file = own if own.exists() else installed_file(f"whisper-{'tiny.en' if english else 'base'}", "tokenizer.json")
    except MissingWeightsError:
        return None
    tokenizer = Tokenizer.from_file(file)
    with torch.inference_mode():
        if folder.name == "whisper-word-timing":
            return _check_timing(case, WhisperTokens.for_vocabulary(tokenizer, 51_865))
        weights = next(folder / name for name in ("model.pt", "model.bin", ".") if (folder / name).exists())
        model = load_published(open_checkpoint(weights))
        tokens = WhisperTokens.for_vocabulary(tokenizer, model.config.vocab_size)
        return _check_model(case, model, tokens)


def _mel(model: Whisper, wave: torch.Tensor) -> torch.Tensor:
    """The short form: the wave is padded with silence to the window, then features are taken."""
    padded = F.pad(wave, (0, 320 * model.config.audio_context - wave.numel()))
    return whisper_scale(mel_spectrum(padded[None], model.config.mel))


def _long_mel(model: Whisper, wave: torch.Tensor) -> torch.Tensor:
    """The long form: features of the wave and 30 s of silence, cut to the wave, zeros behind."""
    mel = whisper_scale(mel_spectrum(F.pad(wave, (0, WINDOW))[None], model.config.mel))
    n = wave.numel() // 160
    return F.pad(mel[..., :n], (0, 2 * model.config.audio_context - n))


def _check_model(case: Case, model: Whisper, tokens: WhisperTokens) -> dict[str, float]:
    about, expected = case.about, case.expected
    sizes = {"n_audio_head": model.config.audio_heads, "n_text_head": model.config.text_heads,
             "n_audio_layer": model.config.audio_layers, "n_text_layer": model.config.text_layers}  # fmt: skip
    for name, value in sizes.items():
        if model.config.audio_dim != 8 or "openai" in case.folder.name or "hf" in case.folder.name:
            case.equal(name, value, about["config"][name])
    if "alignment_heads" in expected:
        pairs = tuple((layer, head) for layer, head in expected["alignment_heads"])
        case.equal("alignment_heads", model.config.heads_for_alignment, pairs)
    if "suppress_default" in expected:
        case.equal("suppress_default", list(tokens.suppressed), expected["suppress_default"])
    if "sot_sequence" in expected:
        case.equal("sot_sequence", tokens.start_sequence("en", "transcribe", True), expected["sot_sequence"])
    for clip in ("a", "b"):
        _check_clip(case, model, tokens, clip)
    if "transcribe_wave_a_eleven_times" in expected:
        _check_long(case, model, tokens)
    return case.errors


def _check_clip(case: Case, model: Whisper, tokens: WhisperTokens, clip: str) -> None:
    wave = case.wave(f"wave_{clip}")
    n = wave.numel() // 160
    mel = _mel(model, wave)
    forms = {"": mel, "_zero_tail": _long_mel(model, wave)}
    for suffix, features in forms.items():
        if f"out.mel_{clip}{suffix}_around_end" in case.tensors:
            case.close(f"mel_{clip}{suffix}_around_end", features[0, :, n - 20 : n + 12])
        name = f"encoder_{clip}{suffix}"
        if f"out.{name}" in case.tensors:
            encoded = model.encode(features)[0]
            wanted = case.tensors[f"out.{name}"].shape[0]
            stride = -(-encoded.shape[0] // wanted)
            case.close(name, encoded[::stride])
    memory = model.decoder.remember(model.encode(mel))
    if clip == "a" and "out.logits_rows" in case.tensors:
        logits = model.decoder(case.given("tokens")[None], memory)[0]
        case.close("logits_rows", logits[:, case.given("rows")])
        case.close("logits_last", logits[-1, ::7])
        if "out.logits_logsumexp" in case.tensors:
            case.close("logits_logsumexp", logits.logsumexp(-1))
    _check_language(case, model, tokens, memory, clip)
    _check_searches(case, model, tokens, memory, clip)
    if clip == "a" and "words_raw" in case.expected:
        _check_words(case, model, tokens, forms["_zero_tail"], n)


def _check_language(case: Case, model: Whisper, tokens: WhisperTokens, memory: Memory, clip: str) -> None:
    odds = detect_language(model.decoder, tokens, memory)[0]
    if f"language_token_{clip}" in case.expected and tokens.multilingual:
        best = tokens.special.languages[max(odds, key=odds.__getitem__)]
        case.equal(f"language_token_{clip}", best, case.expected[f"language_token_{clip}"])
    if f"out.language_probs_{clip}" in case.tensors:
        codes = [code.strip("<|>") for code in case.expected["language_codes"]]
        case.close(f"language_probs_{clip}", torch.tensor([odds[code] for code in codes]))


def _check_searches(case: Case, model: Whisper, tokens: WhisperTokens, memory: Memory, clip: str) -> None:
    plain = DecodingOptions(language="en", max_tokens=24)
    engine = "ctranslate2" in case.folder.name or "hf" in case.folder.name
    prompt = tuple(case.given("prompt_tokens").tolist()) if "in.prompt_tokens" in case.tensors else ()
    untimed = replace(plain, timestamps=False)
    forms = {
        "greedy": untimed if engine else plain,
        "greedy_timestamps": plain,
        "greedy_without_timestamps": untimed,
        "beam5": replace(plain, beams=5),
        "beam3_patience2_length06": replace(plain, beams=3, patience=2.0, length_penalty=0.6),
        "greedy_prompt": replace(plain, prompt=prompt),
        "greedy_prefix": replace(plain, prefix=prompt[:3]),
        "translate": replace(plain, task="translate"),
    }
    if engine:  # these write without the published suppression list only where their files say so
        del forms["beam5"], forms["beam3_patience2_length06"]
    for name, options in forms.items():
        wanted = case.expected.get(f"{name}_{clip}")
        if wanted is None:
            continue
        found = decode(model.decoder, tokens, memory, options)[0]
        ids = wanted if isinstance(wanted, list) else wanted["tokens"]
        ours = list(found.tokens)
        if isinstance(wanted, list):  # transformers goes on into a second window after a pair of timestamps
            ids, ours = _first_window(ids, ours, tokens)
        case.equal(f"{name}_{clip}", ours, ids)
        if isinstance(wanted, dict) and "avg_logprob" in wanted:
            case.errors[f"{name}_{clip}.avg_logprob"] = abs(found.avg_logprob / wanted["avg_logprob"] - 1)
            case.errors[f"{name}_{clip}.no_speech"] = abs(found.no_speech_prob - wanted["no_speech_prob"])


def _first_window(ids: list[int], ours: list[int], tokens: WhisperTokens) -> tuple[list[int], list[int]]:
    first = tokens.special.first_timestamp
    for i in range(1, len(ids)):
        if ids[i] == ids[i - 1] >= first:
            return ids[: i + 1], ours[: i + 1]
    return ids, ours[: len(ids)]


def _check_words(case: Case, model: Whisper, tokens: WhisperTokens, mel: torch.Tensor, n: int) -> None:
    memory = model.decoder.remember(model.encode(mel))
    text = case.given("text_tokens").tolist()
    words = find_words(model, tokens, text, memory, n, "en")
    _equal_words(case, "words_raw", [vars(word) for word in words], case.expected["words_raw"])
    bounds = [Bounds(0.0, 3.2, text, [])]
    place_words(bounds, words, 0.0, 0.0, tokens.special.end)
    _equal_words(case, "words_merged", [vars(word) for word in bounds[0].words], case.expected["words_merged"])


def _equal_words(case: Case, name: str, found: list[dict], wanted: list[dict]) -> None:
    worst = float(len(found) != len(wanted))
    for ours, theirs in zip(found, wanted, strict=False):
        for key, value in theirs.items():
            if isinstance(value, float):
                worst = max(worst, abs(ours[key] - value) / max(1.0, abs(value)))
            elif ours[key] != value:
                worst = 1.0
    case.errors[name] = worst


def _check_long(case: Case, model: Whisper, tokens: WhisperTokens) -> None:
    wave = case.wave("wave_a").repeat(11)
    off = FallbackOptions(temperatures=(0.0,), compression_ratio=None, avg_logprob=None, no_speech=None)
    recognizer = WhisperRecognizer(model, tokens, voice_activity=None)
    options = DecodingOptions(language="en" if tokens.multilingual else None, max_tokens=16)
    found = [
        {"seek": window.seek, "start": s.start, "end": s.end, "tokens": list(s.tokens)}
        for window in sequential_windows(recognizer, wave, options, off, condition_on_previous=True)
        for s in window.segments
    ]
    wanted = case.expected["transcribe_wave_a_eleven_times"]
    same = len(found) == len(wanted) and all(
        ours["tokens"] == theirs["tokens"]
        and ours["seek"] == theirs["seek"]
        and abs(ours["start"] - theirs["start"]) < 1e-6
        and abs(ours["end"] - theirs["end"]) < 1e-6
        for ours, theirs in zip(found, wanted, strict=False)
    )
    case.equal("transcribe_wave_a_eleven_times", same, True)


def _check_dtw(case: Case) -> dict[str, float]:
    for name in ("a", "b", "one", "ties"):
        case.close(f"path_{name}", dtw(case.given(f"cost_{name}")))
    for width in (3, 5, 7):
        case.close(f"median_{width}", median_filter(case.given("x"), width))
    case.close("median_7_short", median_filter(case.given("x")[..., :3], 7))
    return case.errors


def _check_mel(case: Case) -> dict[str, float]:
    for n_mels, clip in ((80, "a"), (128, "b")):
        form, wave = MelFormat.whisper(n_mels), case.wave(f"wave_{clip}")
        n = wave.numel() // 160
        filters = mel_filters(form)
        case.close(f"filters_{n_mels}_rowsum", filters.sum(1))
        case.close(f"filters_{n_mels}_colsum", filters.sum(0))
        padded = whisper_scale(mel_spectrum(F.pad(wave, (0, WINDOW - wave.numel()))[None], form))[0]
        case.close(f"openai_{n_mels}_{clip}_padded", padded[:, : n + 12])
        longer = whisper_scale(mel_spectrum(F.pad(wave, (0, WINDOW))[None], form))[0]
        case.close(f"openai_{n_mels}_{clip}_long", longer[:, n - 20 : n + 4])
        bare = whisper_scale(mel_spectrum(wave[None], form))[0]
        case.close(f"openai_{n_mels}_{clip}_bare_last_20", bare[:, -20:])
        faster = whisper_scale(mel_spectrum(F.pad(wave, (0, 160))[None], form))[0]
        case.close(f"faster_{n_mels}_{clip}_last_20", faster[:, -20:])
    return case.errors


def _check_timing(case: Case, tokens: WhisperTokens) -> dict[str, float]:
    for language in ("en", "zh", "de"):
        text = case.given(f"text_tokens_{language}").tolist()
        ours, groups = tokens.split_words([*text, tokens.special.end], language)
        pairs = [[word, group] for word, group in zip(ours, groups, strict=True)]
        case.equal(f"words_and_tokens_{language}", pairs, case.expected[f"words_and_tokens_{language}"])
        start = 4
        matrix = alignment_matrix(case.given(f"qk_{language}"), 600)[start - 1 : -1]
        if f"out.matrix_{language}" in case.tensors:
            case.close(f"matrix_{language}", matrix)
        case.close(f"matrix_path_{language}", dtw(-matrix))
        logits = case.given(f"logit_of_next_{language}")[start - 1 : -2].double().exp()
        odds = (logits / (logits + tokens.special.end - 1)).tolist()
        words = words_from_matrix(matrix, text, odds, tokens, language)
        _equal_words(case, f"raw_{language}", [vars(word) for word in words], case.expected[f"raw_{language}"])
        half = len(text) // 2
        bounds = [Bounds(0.0, 3.0, text[:half], []), Bounds(3.0, 6.0, text[half:], [])]
        place_words(bounds, words, 0.0, 0.0, tokens.special.end)
        merged = [{"start": b.start, "end": b.end, "words": [vars(w) for w in b.words]} for b in bounds]
        for part, wanted in zip(merged, case.expected[f"merged_{language}"], strict=True):
            label = f"merged_{language}_{wanted['start']}"
            _equal_words(case, label, part["words"], wanted["words"])
            case.equal(
                f"{label}.ends",
                [round(part[k], 6) for k in ("start", "end")],
                [round(wanted[k], 6) for k in ("start", "end")],
            )
    return case.errors
