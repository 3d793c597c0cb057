"""Numbers as English words: cardinals, ordinals, years, decimals, digits one by one, Roman numerals."""

from __future__ import annotations

import re

_SMALL = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = str.split("- - twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = ["", *str.split("thousand million billion trillion quadrillion quintillion sextillion septillion octillion")]
_ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    "twelve": "twelfth",
}
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_LARGEST = 10 ** (3 * len(_SCALES))


def _below_thousand(n: int) -> str:
    words = [f"{_SMALL[n // 100]} hundred"] if n >= 100 else []
    n %= 100
    if n >= 20:
        words.append(_TENS[n // 10] + (f"-{_SMALL[n % 10]}" if n % 10 else ""))
    elif n or not words:
        words.append(_SMALL[n])
    return " ".join(words)


def number_words(n: int) -> str:
    """A whole number as American English words: ``1205`` is "one thousand two hundred five".

    From 10^30 on the digits are read one by one.
    """
    if n < 0:
        return "minus " + number_words(-n)
    if n >= _LARGEST:
        return digit_words(str(n))
    groups = []
    for scale in _SCALES:
        n, part = divmod(n, 1000)
        if part:
            groups.append(f"{_below_thousand(part)} {scale}".strip())
        if not n:
            break
    return " ".join(reversed(groups)) or "zero"


def ordinal_words(n: int) -> str:
    """A whole number as its ordinal: ``22`` is "twenty-second"."""
    head, separator, last = re.fullmatch(r"(?:(.*)([ -]))?([a-z]+)", number_words(n)).groups("")  # pyright: ignore
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th" if not last.endswith("t") else "h"
    return head + separator + last


def year_words(year: int) -> str:
    """A year as it is said: ``1905`` "nineteen oh five", ``2005`` "two thousand five", ``1900`` "nineteen hundred"."""
    century, rest = divmod(year, 100)
    if not 11 <= century <= 99 or (century % 10 == 0 and rest < 10):
        return number_words(year)
    if rest == 0:
        return f"{number_words(century)} hundred"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def decade_words(year: int) -> str:
    """The decade that begins with ``year``: ``1990`` "nineteen nineties", ``1900`` "nineteen hundreds"."""
    words = year_words(year)
    return words[:-1] + "ies" if words.endswith("y") else words + ("es" if words.endswith("x") else "s")


def digit_words(digits: str) -> str:
    """Every digit by its name: "two oh" is not used, zero is "zero"."""
    return " ".join(_SMALL[int(digit)] for digit in digits if digit.isdecimal())


def decimal_words(text: str) -> str:
    """A number written with digits, maybe with commas, a point and a sign: ``"-1,200.05"``.

    Leading zeros ("007") and very long strings of digits are read digit by digit.
    """
    sign = "minus " if text[0] in "-−" else ""
    whole, _, fraction = text.lstrip("+-−").replace(",", "").partition(".")
    if len(whole) > 15 or (len(whole) > 1 and whole[0] == "0"):
        words = digit_words(whole)
    else:
        words = number_words(int(whole)) if whole else ""
    if fraction:
        words = f"{words} point {digit_words(fraction)}".strip()
    return sign + words


def fraction_words(numerator: int, denominator: int) -> str:
    """``3/4`` "three quarters", ``1/2`` "one half", ``7/100`` "seven hundredths"."""
    names = {2: ("half", "halves"), 4: ("quarter", "quarters")}
    one = ordinal_words(denominator)
    singular, plural = names.get(denominator, (one, one + "s"))
    return f"{number_words(numerator)} {singular if numerator == 1 else plural}"


def roman_value(numeral: str) -> int | None:
    """The value of a well-formed upper-case Roman numeral below 4000, else None."""
    if not numeral or not re.fullmatch(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})", numeral):
        return None
    values = [_ROMAN[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
