"""Golden check of Whisper's text normalisers: every string must come out equal."""

from __future__ import annotations

import json
from pathlib import Path

from vivavoce.text.whisper_normalizer import BasicNormalizer, EnglishNormalizer, NumberNormalizer, SpellingNormalizer


def check(case_dir: Path) -> dict[str, float]:
    """Share of differing strings for each output of the case folder ``whisper-normalisers``; 0.0 means all equal."""
    expected = json.loads((Path(case_dir) / "case.json").read_text(encoding="utf-8"))["expected_values"]
    basic = [BasicNormalizer(), BasicNormalizer(True), BasicNormalizer(False, True), BasicNormalizer(True, True)]
    normalizers = {
        "english": [EnglishNormalizer()],
        "numbers": [NumberNormalizer()],
        "spelling": [SpellingNormalizer()],
        "basic": basic,
    }
    errors = {}
    for name, functions in normalizers.items():
        wrong = sum([function(row[0]) for function in functions] != row[1:] for row in expected[name])
        errors[name] = wrong / len(expected[name])
    return errors
