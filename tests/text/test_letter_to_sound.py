"""The recipe's alignment, batches and scores, and the shipped network on words of the dictionary."""

import random

import torch

from vivavoce.recipes.letter_to_sound import align, batches, edits, learn_alignment
from vivavoce.text import lexicon
from vivavoce.text.letter_to_sound import LetterToSound, LetterToSoundConfig, guess

WORDS = {
    **{"cat": "K AE1 T", "bat": "B AE1 T", "tab": "T AE1 B", "cab": "K AE1 B", "make": "M EY1 K", "take": "T EY1 K"},
    **{"tax": "T AE1 K S", "box": "B AA1 K S", "bake": "B EY1 K", "mat": "M AE1 T", "back": "B AE1 K"},
}
ENTRIES = {word: phones.split() for word, phones in WORDS.items()}


def test_alignment_gives_each_letter_its_phones():
    cost = learn_alignment(ENTRIES)
    assert align("cat", ["K", "AE1", "T"], cost) == ("K", "AE1", "T")
    assert align("tax", ["T", "AE1", "K", "S"], cost) == ("T", "AE1", "K S")
    assert " ".join(align("make", ["M", "EY1", "K"], cost) or ()).split() == ["M", "EY1", "K"]
    assert align("a", ["K", "AE1", "T"], cost) is None


def test_edits():
    assert edits([], ["a"]) == 1
    assert edits(["a", "b", "c"], ["a", "c"]) == 1
    assert edits(["a", "b"], ["b", "a"]) == 2


def test_batches_hold_words_of_one_length_and_repeat_with_the_seed():
    data = [(word, tuple(phones)) for word, phones in ENTRIES.items() if len(word) == len(phones)]
    tags = {phone: index for index, phone in enumerate(sorted({p for _, chunks in data for p in chunks}))}
    first = batches(list(data), tags, 3, random.Random(1))
    again = batches(list(data), tags, 3, random.Random(1))
    assert sum(len(letters) for letters, _ in first) == len(data)
    assert all(letters.shape == targets.shape for letters, targets in first)
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_network_shapes_and_row_independence():
    torch.manual_seed(0)
    model = LetterToSound(LetterToSoundConfig(("", "K", "AE1"), dim=8, embedding_dim=4)).eval()
    letters = torch.randint(0, 26, (3, 5))
    logits = model(letters)
    assert logits.shape == (3, 5, 3)
    assert torch.allclose(model(letters[1:2])[0], logits[1], atol=1e-6)


def test_shipped_network_knows_english():
    words = random.Random(3).sample([word for word in lexicon.words() if word.isalpha() and len(word) > 3], 300)
    phones = wrong = 0
    for word in words:
        expected = lexicon.look_up(word) or []
        phones += len(expected)
        wrong += edits(expected, guess(word))
    assert wrong / phones < 0.15


def test_guess_passes_over_what_is_not_a_letter_and_is_bounded():
    assert guess("1é-") == []
    assert guess("blo-rp") == guess("blorp")
    assert len(guess("ab" * 1000)) < 100
