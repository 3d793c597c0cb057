"""ARPAbet to the IPA that English voices trained on espeak's ``en-us`` symbols know.

Dictionaries write ARPAbet phones with a stress digit on vowels (0 none, 1 primary, 2 secondary). Voices want IPA
letters, with the stress mark in front of the vowel. Most phones map one to one; American English has a few rules that
depend on the neighbours (the flap in "city", the syllabic n in "button", reduced vowels), written out below.
``IX`` is our extra symbol for the reduced vowel of "secr*e*t", spelled with e, i or y, where ARPAbet writes ``AH0``.
"""

from __future__ import annotations

from collections.abc import Sequence

_CONSONANTS = {
    **{"B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ", "HH": "h", "JH": "dʒ", "K": "k", "L": "l"},
    **{"M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v"},
    **{"W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
_VOWELS = {
    **{"AA": "ɑː", "AE": "æ", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɜː", "EY": "eɪ"},
    **{"IH": "ɪ", "IX": "ɪ", "IY": "iː", "OW": "oʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "uː"},
}
_MARK = {"0": "", "1": "ˈ", "2": "ˌ"}


def is_vowel(phone: str) -> bool:
    return phone[-1:].isdigit()


def to_ipa(phones: Sequence[str]) -> str:
    """One word of ARPAbet phones to an IPA string with stress marks, e.g. ``S IH1 T IY0`` to ``sˈɪɾi``."""
    phones = list(phones)
    out = []
    for index in range(len(phones)):
        before = phones[index - 1] if index else "#"
        after = phones[index + 1] if index + 1 < len(phones) else "#"
        phone = phones[index]
        if is_vowel(phone):
            reduced = phone[-1] == "0" or (phone == "IY2" and after == "#")
            if reduced:
                out.append(_reduced(phone[:-1], before, after, index, len(phones)))
            else:
                out.append(_MARK[_stress(phones, index)] + _full(phone[:-1], after, phones[index + 2 : index + 4]))
            if phone[:-1] == "ER" and is_vowel(after):
                out.append("ɹ")
        elif phone == "T" and _flaps(phones, index):
            out.append("ɾ")
        elif phone == "T" and _glottal(phones, index):
            out.append("ʔ")
        elif phone == "N" and index >= 2 and before == "AH0" and _glottal(phones, index - 2):
            out[-1] = ""
            out.append("n̩")
        elif phone == "Y" and before in ("L", "N") and after == "AH0":
            out.append("i")
        elif phone == "N" and after in ("K", "G"):
            out.append("ŋ")
        else:
            out.append(_CONSONANTS[phone])
    return "".join(out)


def _stress(phones: Sequence[str], index: int) -> str:
    """The stress digit; a secondary stress next to the primary one is not marked."""
    digit = phones[index][-1]
    if digit != "2" or (index == 0 and phones[0] in ("IH2", "AH2")):
        return digit if digit == "1" else "0"
    digits = [phone[-1] for phone in phones if is_vowel(phone)]
    place = sum(map(is_vowel, phones[:index]))
    neighbours = digits[max(place - 1, 0) : place] + digits[place + 1 : place + 2]
    return "0" if "1" in neighbours else "2"


def _full(vowel: str, after: str, later: Sequence[str]) -> str:
    """The sound of a stressed or unreduced vowel, given the next phone and up to two ``later`` ones."""
    second = later[0] if later else "#"
    short_o = vowel == "AO" and (
        after in ("F", "S", "TH", "NG") or (after == "L" and (second == "T" or later == ["S"]))
    )
    if short_o or (vowel == "AA" and after in ("F", "S") and second == "T"):
        return "ɔ"
    if vowel == "IY" and after == "R":
        return "ɪ"
    if vowel == "UH" and after == "R" and is_vowel(second):
        return "ʊɹ"
    return _VOWELS[vowel]


def _reduced(vowel: str, before: str, after: str, index: int, length: int) -> str:
    """The sound of an unstressed vowel in its place."""
    prefix = index in (1, 2) and before in ("B", "R", "D") and not is_vowel(after) and after != "#"
    if vowel == "AH":
        if index == 0:
            return "ɐ"
        return "ʊ" if before == "Y" and after == "L" else "ə"
    if vowel == "AE":
        return "ɐ" if index == 0 and after in ("D", "S", "P", "B", "G") else "æ"
    if vowel == "ER":
        return "ɚ"
    if vowel in ("IX", "IH"):
        ending = after in ("Z", "D") and index == length - 2
        spelled_e = vowel == "IX" and (index == 0 or after == "T")
        return "ᵻ" if ending or prefix or spelled_e else "ɪ"
    if vowel == "IY":
        plural = after in ("Z", "D") and index == length - 2
        return "ᵻ" if prefix and not plural else "i"
    return _VOWELS[vowel]


def _flaps(phones: Sequence[str], index: int) -> bool:
    """T between a vowel (or r) and an unstressed vowel, except in "-tive" and where it becomes a glottal stop."""
    if not 0 < index < len(phones) - 1 or _glottal(phones, index):
        return False
    before, after = phones[index - 1], phones[index + 1]
    if after == "IH0" and phones[index + 2 : index + 3] == ["V"]:
        return False
    return (is_vowel(before) or before == "R") and is_vowel(after) and after[-1] == "0"


def _glottal(phones: Sequence[str], index: int) -> bool:
    """T between a stressed vowel (or its r) and a final "-ən", as in "button" and "certainly"."""
    if index == 0 or phones[index] != "T" or list(phones[index + 1 : index + 3]) != ["AH0", "N"]:
        return False
    before = phones[index - 2] if phones[index - 1] == "R" and index > 1 else phones[index - 1]
    later = phones[index + 3] if index + 3 < len(phones) else "#"
    return before[-1] in "12" and not is_vowel(later)
