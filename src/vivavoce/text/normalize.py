"""Written English to the words a voice reads aloud.

:func:`normalize_english` runs a table of rules in order; each rule is a pattern and a function that writes words. Early
rules take the most specific shapes (addresses of web pages, dates, money), late ones what is left (bare numbers,
symbols), so that no rule has to know the others. The result holds letters, apostrophes, hyphens inside words and
punctuation; reading it again changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from vivavoce.text.numbers import (
    decade_words,
    decimal_words,
    digit_words,
    fraction_words,
    number_words,
    ordinal_words,
    roman_value,
    year_words,
)

__all__ = ["normalize_english", "number_words", "ordinal_words"]

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]

NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_START = r"(?<![\w.,:/-])"

_MONTHS = str.split("January February March April May June July August September October November December")
_MONTH_NUMBER = {
    **{name: n for n, name in enumerate(_MONTHS, start=1)},
    **{name[:3]: n for n, name in enumerate(_MONTHS, start=1)},
    "Sept": 9,
}
_MONTH = "(" + "|".join(sorted(_MONTH_NUMBER, key=len, reverse=True)) + r")\b(?:\.(?=,? ?\d))?"

_SCALE = {
    **{"k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million"},
    **{"b": "billion", "B": "billion", "bn": "billion", "Bn": "billion", "t": "trillion", "T": "trillion"},
    **{"tn": "trillion", "thousand": "thousand", "million": "million", "billion": "billion", "trillion": "trillion"},
}
_SCALE_PATTERN = "(?:" + "|".join(sorted(_SCALE, key=len, reverse=True)) + r")\b"
# Without a currency sign fewer of them are safe: "Room 5B", "20 m".
_BARE_SCALE = r"(?:k|K|M|bn|mn|tn|thousand|million|billion|trillion)\b"
_CURRENCY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}

# Written after a number: (singular, plural).
_UNITS = {
    **{"km": ("kilometer", "kilometers"), "m": ("meter", "meters"), "cm": ("centimeter", "centimeters")},
    **{"mm": ("millimeter", "millimeters"), "µm": ("micrometer", "micrometers"), "nm": ("nanometer", "nanometers")},
    **{"mi": ("mile", "miles"), "ft": ("foot", "feet"), "yd": ("yard", "yards"), "in.": ("inch", "inches")},
    **{"kg": ("kilogram", "kilograms"), "g": ("gram", "grams"), "mg": ("milligram", "milligrams")},
    **{"µg": ("microgram", "micrograms"), "lb": ("pound", "pounds"), "lbs": ("pound", "pounds")},
    **{
        "oz": ("ounce", "ounces"),
        "l": ("liter", "liters"),
        "L": ("liter", "liters"),
        "ml": ("milliliter", "milliliters"),
    },
    **{"mL": ("milliliter", "milliliters"), "gal": ("gallon", "gallons"), "h": ("hour", "hours")},
    **{"hr": ("hour", "hours"), "hrs": ("hour", "hours"), "min": ("minute", "minutes"), "mins": ("minute", "minutes")},
    **{"s": ("second", "seconds"), "sec": ("second", "seconds"), "secs": ("second", "seconds")},
    **{"ms": ("millisecond", "milliseconds"), "µs": ("microsecond", "microseconds")},
    **{"ns": ("nanosecond", "nanoseconds"), "Hz": ("hertz", "hertz"), "kHz": ("kilohertz", "kilohertz")},
    **{"MHz": ("megahertz", "megahertz"), "GHz": ("gigahertz", "gigahertz"), "B": ("byte", "bytes")},
    **{"KB": ("kilobyte", "kilobytes"), "kB": ("kilobyte", "kilobytes"), "MB": ("megabyte", "megabytes")},
    **{"GB": ("gigabyte", "gigabytes"), "TB": ("terabyte", "terabytes"), "KiB": ("kibibyte", "kibibytes")},
    **{
        "MiB": ("mebibyte", "mebibytes"),
        "GiB": ("gibibyte", "gibibytes"),
        "Mbps": ("megabit per second", "megabits per second"),
    },
    **{"Gbps": ("gigabit per second", "gigabits per second"), "kbps": ("kilobit per second", "kilobits per second")},
    **{"W": ("watt", "watts"), "kW": ("kilowatt", "kilowatts"), "MW": ("megawatt", "megawatts")},
    **{"kWh": ("kilowatt hour", "kilowatt hours"), "V": ("volt", "volts"), "mA": ("milliamp", "milliamps")},
    **{"mAh": ("milliamp hour", "milliamp hours"), "J": ("joule", "joules"), "kJ": ("kilojoule", "kilojoules")},
    **{"kcal": ("kilocalorie", "kilocalories"), "cal": ("calorie", "calories"), "dB": ("decibel", "decibels")},
    **{"Pa": ("pascal", "pascals"), "kPa": ("kilopascal", "kilopascals"), "psi": ("P S I", "P S I")},
    **{"mph": ("mile per hour", "miles per hour"), "kph": ("kilometer per hour", "kilometers per hour")},
    **{"rpm": ("R P M", "R P M"), "fps": ("frame per second", "frames per second"), "px": ("pixel", "pixels")},
    **{"ha": ("hectare", "hectares"), "°C": ("degree Celsius", "degrees Celsius")},
    **{"°F": ("degree Fahrenheit", "degrees Fahrenheit"), "°": ("degree", "degrees"), "K": ("kelvin", "kelvin")},
    **{"%": ("percent", "percent"), "‰": ("per mille", "per mille"), "bpm": ("beat per minute", "beats per minute")},
}
# A bare letter after a number with no space is a unit only for these; "5G" and "3D" are names.
_PER = {"h": "hour", "hr": "hour", "s": "second", "sec": "second", "min": "minute", "day": "day", "kg": "kilogram"}
_PER |= {
    "l": "liter",
    "L": "liter",
    "m": "meter",
    "km": "kilometer",
    "m²": "square meter",
    "g": "gram",
    "gal": "gallon",
}
_POWER = {"²": "square ", "2": "square ", "³": "cubic ", "3": "cubic "}

# Abbreviations that are said in full wherever they stand; the dot belongs to them.
_ABBREVIATIONS = {
    **{"Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor", "Capt.": "Captain", "Lt.": "Lieutenant"},
    **{"Col.": "Colonel", "Gen.": "General", "Sgt.": "Sergeant", "Cpl.": "Corporal", "Maj.": "Major"},
    **{"Sen.": "Senator", "Rep.": "Representative", "Gov.": "Governor", "Pres.": "President", "Rev.": "Reverend"},
    **{"Hon.": "Honorable", "Jr.": "Junior", "Sr.": "Senior", "Esq.": "Esquire", "Inc.": "Incorporated"},
    **{"Ltd.": "Limited", "Corp.": "Corporation", "Bros.": "Brothers", "Dept.": "Department", "Assn.": "Association"},
    **{"Univ.": "University", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road", "Hwy.": "Highway"},
    **{"Mt.": "Mount", "Ft.": "Fort", "vs.": "versus", "etc.": "et cetera", "e.g.": "for example"},
    **{"i.e.": "that is", "cf.": "compare", "et al.": "and others", "approx.": "approximately", "est.": "estimated"},
    **{"incl.": "including", "excl.": "excluding", "misc.": "miscellaneous", "dept.": "department"},
    **{"a.k.a.": "also known as", "ca.": "circa", "viz.": "namely", "govt.": "government", "Govt.": "Government"},
    **{"Ph.D.": "PhD", "B.Sc.": "BSc", "M.Sc.": "MSc"},
    **{"Mon.": "Monday", "Tue.": "Tuesday", "Tues.": "Tuesday", "Wed.": "Wednesday", "Thu.": "Thursday"},
    **{"Thurs.": "Thursday", "Fri.": "Friday", "Jan.": "January", "Feb.": "February", "Aug.": "August"},
    **{"Sept.": "September", "Oct.": "October", "Nov.": "November", "Dec.": "December", "Apr.": "April"},
    **{"WWI": "World War one", "WWII": "World War two"},
    **{"w/o": "without", "w/": "with", "b/c": "because", "vs": "versus", "aka": "also known as"},
}
# Before a number only.
_BEFORE_NUMBER = {
    **{"No.": "number", "no.": "number", "Nos.": "numbers", "nos.": "numbers", "p.": "page", "pp.": "pages"},
    **{"Vol.": "volume", "vol.": "volume", "Fig.": "figure", "fig.": "figure", "Ch.": "chapter", "ch.": "chapter"},
    **{"Sec.": "section", "sec.": "section", "Eq.": "equation", "eq.": "equation", "Art.": "article", "c.": "circa"},
    **{"ext.": "extension", "Ext.": "extension", "pt.": "part", "Pt.": "part", "§": "section", "№": "number"},
}
_ROMAN_AFTER = str.split(
    "Chapter Part Volume Book Section Act Scene Type Phase War Title Article Appendix Level Class Grade Stage Bowl "
    "Mark Unit Lesson Round Episode Season Figure Table Apollo Rocky Henry"
)
_RULERS = str.split(
    "Henry Louis George Elizabeth Edward Charles James William Richard Paul Napoleon Philip Peter Catherine Frederick "
    "Francis Benedict Pius Leo Gregory Clement Innocent Ramses Rameses Nicholas Alexander Alfonso Gustav Christian "
    "Carlos Juan Pedro Ivan Mary Otto Umberto Emmanuel Ferdinand Joseph Leopold Wilhelm Ptolemy Urban Boniface"
)
_FRACTION_SIGNS = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_SYMBOLS = {
    **{"&": "and", "@": "at", "+": "plus", "=": "equals", "<": "less than", ">": "greater than", "×": "times"},
    **{"÷": "divided by", "±": "plus or minus", "≈": "approximately", "≤": "less than or equal to"},
    **{"≥": "greater than or equal to", "≠": "not equal to", "√": "square root of", "∞": "infinity", "π": "pi"},
    **{"%": "percent", "°": "degrees", "→": "to", "−": "minus", "§": "section", "^": "to the power of"},
    **{"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees", "¢": "cents", "\\": "backslash"},
    **{"/": "slash", "~": "about", "#": "number", "©": "copyright", "µ": "micro"},
}
_LOOKALIKES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‑": "-", "‐": "-", "μ": "µ"}
    | {"−": "-", "⁄": "/", "•": ",", "·": ",", "…": "...", "´": "'"}
)


def _clean(text: str) -> str:
    """Plain quotes, no control characters, no emoji, no invisible characters, no sized or full-width letters."""
    for sign, plain in _FRACTION_SIGNS.items():
        text = re.sub(rf"(?<=\d){sign}", f" {plain}", text).replace(sign, plain)
    text = text.translate(_LOOKALIKES)
    out = []
    for char in text:
        category = unicodedata.category(char)
        if char in "\n\t\r" or category[0] == "Z":
            out.append("\n" if char in "\n\r" else " ")
        elif char in _SYMBOLS or char in "²³‰№`|_*":
            out.append(char)
        elif category in ("Cf", "Me") or (category == "Mn" and not out):
            continue
        elif category[0] in "CS" or (category == "Mn" and not out[-1].isalpha()):
            out.append(" ")
        else:
            out.append(unicodedata.normalize("NFKC", char) if char > "\u2000" else char)
    plain = unicodedata.normalize("NFC", "".join(out))
    return re.sub(r"\n(?: ?\n){2,}", "\n\n", re.sub(r" {2,}", " ", plain))


_MARKDOWN = [
    (re.compile(r"^[ \t]*(```|~~~).*$", re.M), ""),
    (re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"]*\")?\)"), r"\1"),
    (re.compile(r"<\s*(https?://[^\s>]+|[^\s<>@]+@[^\s<>]+)\s*>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s+[a-zA-Z-]+=\"[^\"]*\")*\s*/?>"), " "),
    (re.compile(r"^[ \t]*#{1,6}[ \t]+(.*?)[ \t#]*$", re.M), r"\1"),
    (re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.M), ""),
    (re.compile(r"^[ \t]*(?:>[ \t]*)+", re.M), ""),
    (re.compile(r"^[ \t]*[-*+][ \t]+(?:\[[ xX]\][ \t]+)?", re.M), ""),
    (re.compile(r"^[ \t]*\|?(?:[ \t]*:?-{3,}:?[ \t]*\|)+(?:[ \t]*:?-{3,}:?)?[ \t]*$", re.M), ""),
    (re.compile(r"(\*\*|__|~~)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)_(?=[^\s_])([^_\n]+?)(?<=[^\s_])_(?!\w)"), r"\1"),
    (re.compile(r"`+"), ""),
    (re.compile(r"[ \t]*\|\s*\Z"), ""),
    (re.compile(r"[ \t]*\|[ \t]*"), ", "),
]


def _plain(text: str) -> str:
    """Markdown marks removed; a line that ends without punctuation ends a sentence when another line follows."""
    for pattern, replacement in _MARKDOWN:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<=[\w)\"'%])[ \t]*\n[ \t]*\n\s*(?=\S)", ". ", text)
    return text


def _spelled_address(text: str) -> str:
    """The words of a web or e-mail address."""
    names = {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "~": "tilde"}
    names |= {"?": "question mark", "=": "equals", "&": "and", "#": "hash", "%": "percent", "+": "plus"}
    pieces = re.findall(r"[A-Za-z]+|\d+|[^\w\s]|_", text)
    return " ".join(digit_words(p) if p.isdigit() else p if p.isalpha() else names.get(p, "") for p in pieces)


def _url(found: re.Match[str]) -> str:
    address = found[0]
    tail = re.search(r"[.,;:!?)\"']*$", address)
    end = tail[0] if tail else ""
    bare = re.sub(r"^(?:https?|ftp)://(?:www\.)?", "", address[: len(address) - len(end)]).rstrip("/")
    return f" {_spelled_address(bare)}{end} "


def _date(year: int | None, month: int, day: int | None) -> str:
    words = _MONTHS[month - 1]
    if day is not None:
        words += f" {ordinal_words(day)}"
    return words + (f", {year_words(year)}" if year is not None else "")


def _numeric_date(found: re.Match[str]) -> str:
    first, second, year = int(found[1]), int(found[2]), int(found[3])
    month, day = (second, first) if first > 12 else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return found[0]
    if year < 100:
        year += 2000 if year < 50 else 1900
    return _date(year, month, day)


def _iso_date(found: re.Match[str]) -> str:
    year, month, day = int(found[1]), int(found[2]), int(found[3])
    return _date(year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else found[0]


def _month_first(found: re.Match[str]) -> str:
    day = int(found[2])
    year = int(found[3]) if found[3] else None
    if not 1 <= day <= 31:
        return found[0]
    return _date(year, _MONTH_NUMBER[found[1]], day)


def _day_first(found: re.Match[str]) -> str:
    day = int(found[1])
    if not 1 <= day <= 31:
        return found[0]
    year = f" {year_words(int(found[3]))}" if found[3] else ""
    return f"the {ordinal_words(day)} of {_MONTHS[_MONTH_NUMBER[found[2]] - 1]}{year}"


def _time(found: re.Match[str]) -> str:
    hour, minute = int(found[1]), int(found[2])
    second = found[3]
    half = re.sub(r"[^apm]", "", (found[4] or "").lower()).upper()
    if hour > 24 or minute > 59:
        return f"{number_words(hour)} {number_words(minute)}" + (f" {number_words(int(second))}" if second else "")
    words = number_words(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{number_words(minute)}"
    elif not half:
        words += " o'clock" if 0 < hour <= 12 else " hundred" if hour else " hundred hours"
    if second:
        words += f" and {number_words(int(second))} second{'s' if int(second) != 1 else ''}"
    return words + (f" {half}" if half else "")


def _full_hour(found: re.Match[str]) -> str:
    return f"{decimal_words(found[1])} {re.sub(r'[^apm]', '', found[2].lower()).upper()}"


def _phone(found: re.Match[str]) -> str:
    plus = "plus " if found[0].startswith("+") else ""
    return plus + ", ".join(digit_words(group) for group in re.findall(r"\d+", found[0]))


def _money(sign: str, amount: str, scale: str) -> str:
    one, many, small, smalls = _CURRENCY[sign]
    if scale:
        return f"{decimal_words(amount)} {_SCALE[scale.strip()]} {many}"
    whole, _, fraction = amount.replace(",", "").partition(".")
    if len(fraction) not in (0, 2):
        return f"{decimal_words(amount)} {many}"
    units, cents = int(whole[-18:] or 0), int(fraction or 0)
    words = f"{decimal_words(whole)} {one if units == 1 else many}" if units or not cents else ""
    if cents:
        coins = f"{number_words(cents)} {small if cents == 1 else smalls}"
        words = f"{words} and {coins}" if words else coins
    return words


def _money_first(found: re.Match[str]) -> str:
    minus = "minus " if found[1] else ""
    return minus + _money(found[2], found[3], found[4] or "")


def _money_range(found: re.Match[str]) -> str:
    return f"{decimal_words(found[2])} to {_money(found[1], found[3], found[4] or '')}"


def _unit(found: re.Match[str]) -> str:
    amount, unit, power, per = found[1], found[2], found[3], found[4]
    one = amount.lstrip("-") == "1"
    words = f"{decimal_words(amount)} {_POWER.get(power or '', '')}{_UNITS[unit][0 if one else 1]}"
    return words + (f" per {_PER[per]}" if per else "")


def _fraction(found: re.Match[str]) -> str:
    whole, top, bottom = found[1], int(found[2]), int(found[3])
    said = {(24, 7): "twenty-four seven", (9, 11): "nine eleven", (50, 50): "fifty fifty"}
    if not whole and (top, bottom) in said:
        return said[top, bottom]
    if not 2 <= bottom <= 100 or top > bottom:
        return f"{decimal_words(whole) + ' ' if whole else ''}{number_words(top)} over {number_words(bottom)}"
    words = fraction_words(top, bottom)
    if whole:
        return f"{decimal_words(whole)} and {re.sub('^one ', 'a ', words)}"
    return words


def _bare_number(found: re.Match[str]) -> str:
    text = found[0]
    if re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", text):
        return year_words(int(text))
    return decimal_words(text)


def _ruler(found: re.Match[str]) -> str:
    value = roman_value(found[2])
    return f"{found[1]} the {ordinal_words(value)}" if value else found[0]


def _numbered(found: re.Match[str]) -> str:
    value = roman_value(found[2])
    return f"{found[1]} {number_words(value)}" if value else found[0]


def _abbreviation(found: re.Match[str]) -> str:
    """The full word; the dot stays when it also ends the text or a line."""
    return _ABBREVIATIONS[found[1]] + ("." if found[1].endswith(".") and found[2] is not None else "")


def _dotted(found: re.Match[str]) -> str:
    return found[1].replace(".", "") + ("." if found[2] is not None else "")


def _words(template: str) -> Callable[[re.Match[str]], str]:
    return lambda found: found.expand(template)


def _any(table: dict[str, str] | dict[str, tuple[str, str]]) -> str:
    return "(" + "|".join(re.escape(key) for key in sorted(table, key=len, reverse=True)) + ")"


_AT_END = r"(\s*$)?"
_YEAR = r"(1\d{3}|20\d\d)"
_RANGE_END = rf"(?={NUMBER})"
_RULES: list[Rule] = [
    (re.compile(pattern), function)
    for pattern, function in [
        # addresses
        (r"(?:https?|ftp)://[^\s<>]+|\bwww\.[^\s<>]+", _url),
        (r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+", lambda found: f" {_spelled_address(found[0].rstrip('.'))} "),
        (
            r"(?<![\w.-])[a-z][a-z0-9-]{0,63}(?:\.[a-z0-9-]{1,63}){0,4}\.(?:com|org|net|edu|gov|io|ai|dev|co\.uk)\b(?:/[\w./-]*\w)?",
            _url,
        ),
        # acronyms with dots
        (rf"(?<![\w.])((?:[A-Z]\.){{2,}}){_AT_END}", _dotted),
        # dates
        (r"(?<!\d)(\d{4})-(\d\d)-(\d\d)(?!\d)", _iso_date),
        (r"(?<![\d/])(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)(?![\d/])", _numeric_date),
        (rf"\b{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)(?:,? {_YEAR}\b)?", _month_first),
        (rf"(?<![\d.,])(?:the )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? {_YEAR}\b)?", _day_first),
        (
            rf"\b{_MONTH},? {_YEAR}\b",
            lambda found: f"{_MONTHS[_MONTH_NUMBER[found[1]] - 1]} {year_words(int(found[2]))}",
        ),
        (r"\b(1[1-9]\d0|20\d0)'?s\b", lambda found: decade_words(int(found[1]))),
        (r"(?<!\w)'?([2-9]0)'?s\b", lambda found: decade_words(int(found[1]))),
        # times
        (r"\b(\d{1,2}):(\d\d)(?::(\d\d))?(?:\s?([ap]\.m\.|[AP]\.M\.|[ap]m\b|[AP]M\b))?(?![:\d])", _time),
        (r"\b(\d{1,2})\s?([ap]\.m\.|[AP]\.M\.|[ap]m\b|[AP]M\b)", _full_hour),
        (r"(?<![\d:.])(\d{1,3}):(\d{1,3})(?![\d:])", _words(r"\1 to \2")),
        # telephone numbers
        (r"(?<![\w.])\+\d{1,3}(?:[ .-]\(?\d{2,4}\)?){2,4}(?!\w)", _phone),
        (r"(?<![\w.])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?!\w)", _phone),
        (r"(?<![\w.-])\d{3}-\d{4}(?![\w-])", _phone),
        # money
        (r"\b(\d+),(\d\d)\s?€", _words(r"\1.\2 €")),
        (r"([$€£¥₹]\d[\d.,]*\d|[$€£¥₹]\d)/(?=[a-z])", _words(r"\1 per ")),
        (rf"(?:US|CA|AU)?([$€£¥₹])({NUMBER})\s?[-–]\s?\1?({NUMBER})(\s?{_SCALE_PATTERN})?", _money_range),
        (rf"(-)?(?:US|CA|AU)?([$€£¥₹])\s?({NUMBER})(\s?{_SCALE_PATTERN})?", _money_first),
        (rf"{_START}({NUMBER})(\s?{_SCALE_PATTERN})?\s?([€£¥₹])", lambda f: _money(f[3], f[1], f[2] or "")),
        (rf"{_START}({NUMBER})\s?¢", lambda found: f"{decimal_words(found[1])} cent{'s' * (found[1] != '1')}"),
        # ranges, then what carries a unit
        (rf"{_START}({NUMBER})\s?(%|°[CF]?)?(?:\s?[–—]\s?|-){_RANGE_END}", _words(r"\1 to ")),
        (r"(?<!\w)'(\d\d)\b(?!')", lambda found: number_words(int(found[1])) if found[1] > "09" else found[0]),
        (
            r"\b(\d{1,3}) ft\.? (\d{1,2}) in\b\.?",
            lambda f: f"{number_words(int(f[1]))} feet {number_words(int(f[2]))} inches",
        ),
        (r"(?<![\w.,])(\d{3,9})s\b", lambda found: decade_words(int(found[1]))),
        (r"\b(\d)'\s?(\d{1,2})(?:\"|'')", lambda f: f"{number_words(int(f[1]))} foot {number_words(int(f[2]))}"),
        (
            rf"(?:(?<=\s)|^|(?<=\())(-?(?:{NUMBER}))\s?(?:(?<=\s)|(?![A-Z](?![A-Za-z])))"
            rf"{_any(_UNITS)}(?<![.])([²³]|\^?[23](?!\d))?(?:/{_any(_PER)})?(?![\w°])(?:\.(?=\s[a-z]))?",
            _unit,
        ),
        (
            rf"(?<!\d)({NUMBER}) in\.",
            lambda found: f"{decimal_words(found[1])} {'inch' if found[1] == '1' else 'inches'}",
        ),
        (rf"(?<!\d)({NUMBER})\s?({_BARE_SCALE})", lambda found: f"{decimal_words(found[1])} {_SCALE[found[2]]}"),
        # fractions, ordinals
        (r"(?<![\w./])(?:(\d+) )?(\d{1,3})/(\d{1,3})(?![\w/])", _fraction),
        (
            r"(?<![\w,.])(\d{1,3}(?:,\d{3}){1,6}|\d{1,18})(?:st|nd|rd|th)\b",
            lambda found: ordinal_words(int(found[1].replace(",", ""))),
        ),
        # Roman numerals and abbreviations
        (rf"\b({'|'.join(_ROMAN_AFTER[:-1])}) ([IVXL]+)\b(?!')", _numbered),
        (rf"\b({'|'.join(_RULERS)}) ([IVX]{{2,}}|V|X)\b(?!\.)", _ruler),
        (rf"(?<![\w.]){_any(_BEFORE_NUMBER)}\s?(?=\d)", lambda found: _BEFORE_NUMBER[found[1]] + " "),
        (r"\bDr\.(?= ?[A-Z])", _words("Doctor")),
        (r"(?<=[a-z] )Dr\.?(?=\s*(?:[,.;]|$))", _words("Drive")),
        (r"\bDr\.", _words("Doctor")),
        (r"(?<=[a-z] )St\.(?=\s*$)", _words("Street.")),
        (r"(?<=[a-z\d] )St\.?(?=[,;]| (?:in|at|and|is|was|on|near)\b)", _words("Street")),
        (r"\bSt\.(?= ?[A-Z])", _words("Saint")),
        (r"\bCo\.(?=,| (?:[a-z]|Ltd|Inc))", _words("Company")),
        (rf"(?<![\w./]){_any(_ABBREVIATIONS)}(?![\w/]){_AT_END}", _abbreviation),
        (r"\b([ap]\.m|[AP]\.M)\.", lambda found: found[1].replace(".", "").upper()),
        (r"(^|(?<!\w)[A-Z][a-z]+ |(?<!\w)[A-Z]\.? )([A-HJ-Z])\. (?=[A-Z])", _words(r"\1\2 ")),
        # numbers that are left
        (r"(?<![\w.])v(?=\d+\.\d)", _words("version ")),
        (
            r"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.]*\d)",
            lambda f: " point ".join(decimal_words(p) for p in f[0].split(".")),
        ),
        (r"#(?=\d)", _words("number ")),
        (r"#(?=[A-Za-z])", _words("hashtag ")),
        (rf"(?:(?<=\s)|^|(?<=[(=<>]))-(?={NUMBER})", _words("minus ")),
        (rf"(?<!\d)({NUMBER})\s?[*x×]\s?(?=\d)", _words(r"\1 times ")),
        (rf"(?<!\d)({NUMBER})\s-\s(?=\d)", _words(r"\1 minus ")),
        (r"(?<=[A-Za-z])-?(?=\d)", _words(" ")),
        (r"(?<=\d)(?=[A-Za-z])", _words(" ")),
        (rf"(?:{NUMBER})", _bare_number),
    ]
]


def _symbols(text: str) -> str:
    """Symbols that are left become words or go."""
    text = re.sub(r"\*+|`+|\|", " ", text)
    text = re.sub(r"(?<=\w)_+(?=\w)|_+", " ", text)
    text = re.sub(r"[²³]", lambda found: " squared" if found[0] == "²" else " cubed", text)
    text = re.sub(r"\band/or\b", "and or", text)
    text = re.sub("|".join(re.escape(symbol) for symbol in _SYMBOLS), lambda found: f" {_SYMBOLS[found[0]]} ", text)
    return "".join(char if unicodedata.category(char)[0] not in "SC" or char == "\n" else " " for char in text)


def _tidy(text: str) -> str:
    """One space between words, none before punctuation, no runs of marks, dashes with spaces around."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s*(?:--+|—|–)\s*", " — ", text)
    text = re.sub(r"(?<!\w)-+(?!\w)|(?<!\w)-+(?=\w)|(?<=\w)-+(?!\w)", " ", text)
    text = re.sub(r"[\[{]", "(", text)
    text = re.sub(r"[\]}]", ")", text)
    text = re.sub(r"\(\s*\)|\"\s*\"", " ", text)
    text = re.sub(r"([!?])[!?]+", lambda found: "?" if "?" in found[0] else "!", text)
    text = re.sub(r"\.{4,}", "...", text)
    text = re.sub(r"\s+([,.;:!?)])", r"\1", text)
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = re.sub(r"[,;:]+(?=[.!?])", "", text)
    text = re.sub(r"([!?])\.(?!\.)", r"\1", text)
    text = re.sub(r"\(\s+", "(", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"^[\s,;:.!?)—]+|[\s—(]+$", "", text)


def _once(text: str) -> str:
    text = _plain(_clean(text))
    for pattern, function in _RULES:
        text = pattern.sub(function, text)
    return _tidy(_symbols(text))


def normalize_english(text: str) -> str:
    """Everything a voice cannot read as it stands, written as words: numbers, dates, money, units, addresses, symbols.

    Idempotent. Acronyms stay in capitals, to be spelled by the phonemizer. Markdown, emoji and control characters go.
    """
    # A mark that goes away can uncover another (nested emphasis, a list inside a quotation), so look again.
    for _ in range(6):
        before, text = text, _once(text)
        if text == before:
            break
    return text
