"""What an assistant must not guess: sums, time and date, repeating, stopping, and what it cannot know or will not do.

Each skill is a function of the sentence that either answers or declines with None. No model is asked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from vivavoce.text.normalize import number_words, ordinal_words
from vivavoce.text.whisper_normalizer import EnglishNormalizer

NAME = "Viva"
MEMORY = 10_000  # characters of what the user said that are kept


@dataclass(frozen=True)
class SkillAnswer:
    """``text`` to say (empty where the user wants silence), and the ``number`` that a sum gave."""

    text: str
    number: Fraction | None = None


_AGAIN = r"(?:say (?:that|it) again|repeat (?:that|it)|(?:what|pardon|sorry)(?: did you say)?|come again)(?: please)?"
_STOP = (
    r"(?:stop|be quiet|shut up|quiet|silence|never ?mind|cancel|enough|that is all|thats all|that s all)"
    r"(?: (?:it|that|please|talking|now|thanks|thank you))*"
)
_OPENING = (
    r"^(?:(?:hey|hi|hello|ok|okay|so|well|please|and|now|then|um|can you tell me|could you tell me|tell me|"
    r"do you know) )+"
)


class Skills:
    """The skills of one conversation; remembers the last result and the last answer."""

    def __init__(self) -> None:
        self._normalize = EnglishNormalizer()
        self.last_number: Fraction | None = None
        self.last_answer = ""
        self.told = ""  # everything the user has said, in normalised form

    def answer(self, heard: str, now: datetime) -> SkillAnswer | None:
        """Answer what was heard, or None when it is not for a skill. Nothing is remembered until :meth:`heed`: the
        utterance may turn out to go on."""
        plain = self._normalize(_signs_as_words(heard))
        plain = re.sub(_OPENING, "", plain)
        return (
            _stop(plain)
            or self._repeat(heard, plain)
            or _refuse(plain)
            or self._sum(plain)
            or _clock(plain, now)
            or _cannot_know(plain, self.told)
            or _about_itself(plain)
        )

    def heed(self, heard: str, answer: str, skill: SkillAnswer | None = None) -> None:
        """Remember a turn that took place: what was said, what was answered (by whomever), and a skill's number."""
        self.told = f"{self.told} {self._normalize(heard)}"[-MEMORY:]
        self.last_answer = answer or self.last_answer
        if skill is not None and skill.number is not None:
            self.last_number = skill.number

    def _repeat(self, heard: str, plain: str) -> SkillAnswer | None:
        if re.fullmatch(_AGAIN, plain):
            return SkillAnswer(self.last_answer or "I have not said anything yet.")
        asked = re.search(r"\b(?:repeat after me|say after me|please repeat)\b[\s,:.]*(.+)", heard, re.IGNORECASE)
        return SkillAnswer(asked[1].strip()) if asked else None

    def _sum(self, plain: str) -> SkillAnswer | None:
        result = calculate(plain, self.last_number)
        if result is None:
            return None
        if isinstance(result, str):
            return SkillAnswer(result)
        return SkillAnswer(f"{spoken_sum(plain, result)}.", result)


# ------------------------------------------------------------------------------------------------------- arithmetic

_SIGNS = {"-": "minus", "−": "minus", "–": "minus", "+": "plus", "*": "times", "×": "times", "x": "times",
          "÷": "divided by", "/": "divided by"}  # fmt: skip


def _signs_as_words(heard: str) -> str:
    """ "100-36" -> "100 minus 36": a recogniser writes sums as it likes, and the normaliser would drop the sign."""
    return re.sub(r"(?<=\d)\s*([-−–+*×÷/]|(?<= )x(?= ))\s*(?=\d)", lambda found: f" {_SIGNS[found[1]]} ", heard)


_NUMBER = r"\d+(?:\.\d+)?(?:/\d+)?"
_OPERATORS = (
    (r"\b(?:multiplied by|times|x)\b", "*"),
    (r"\b(?:divided by|over)\b", "/"),
    (r"\b(?:plus|added to)\b", "+"),
    (r"\b(?:minus|less)\b", "-"),
    (r"\bto the power of\b|\bto the (?=\d+(?:st|nd|rd|th)\b)", "^"),
    (r"×", "*"),
    (r"÷", "/"),
)
_ASKING = (
    r"^(?:what (?:is|are|does|do|s)|whats|what is the (?:sum|result|answer) of|how much (?:is|are|does)|"
    r"calculate|compute|work out|give me|add up)\s+"
)


def calculate(plain: str, last: Fraction | None = None) -> Fraction | str | None:
    """The value of a spoken sum in normalised text (digits, lower case); a sentence when it has none; None when it is
    no sum.
    """
    text = re.sub(r"(\d),(\d{3})", r"\1\2", plain.strip(" ?.!"))
    text = re.sub(r"\b(?:what about|how about|if you|make it|is|equals?|equal to|make|give)$", "", text).strip()
    text = re.sub(_ASKING, "", text)
    text = re.sub(r"^(?:the )?(?:sum|total|result) of ", "", text)
    text = re.sub(r"\bpercent\b", "%", text)
    for pattern, rewrite in _FORMS:
        found = re.fullmatch(pattern, text)
        if found:
            text = rewrite(found)
            break
    for pattern, sign in _OPERATORS:
        text = re.sub(pattern, f" {sign} ", text)
    if last is not None:
        text = re.sub(r"\b(?:that|it|the result|this)\b", _written(last), text)
        text = re.sub(r"^(?:n|an|in) (?=[-+*/^])", "", text.strip())  # "and plus" is often heard so
        if re.match(r"[-+*/^]", text.strip()):
            text = f"{_written(last)} {text}"
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    tokens = re.findall(rf"{_NUMBER}|[-+*/^()]|\S", text)
    if len(tokens) < 2 or not any(token in "+-*/^" or token.startswith("sqrt") for token in tokens):
        return None
    try:
        value, rest = _expression(tokens, 0)
    except ZeroDivisionError:
        return "Nothing can be divided by zero."
    except (ValueError, IndexError, OverflowError):
        return None
    return value if rest == len(tokens) else None


_FORMS = (
    (rf"(?:the )?square root of ({_NUMBER})", lambda m: f"{m[1]} ^ 0.5"),
    (rf"({_NUMBER}) squared", lambda m: f"{m[1]} ^ 2"),
    (rf"({_NUMBER}) cubed", lambda m: f"{m[1]} ^ 3"),
    (rf"({_NUMBER}) ?% of ({_NUMBER})", lambda m: f"{m[1]} * {m[2]} / 100"),
    (rf"(?:a |1 )?half of ({_NUMBER})", lambda m: f"{m[1]} / 2"),
    (rf"(?:a |1 )?third of ({_NUMBER})", lambda m: f"{m[1]} / 3"),
    (rf"(?:a |1 )?quarter of ({_NUMBER})", lambda m: f"{m[1]} / 4"),
    (rf"(?:double|twice) ({_NUMBER}|that|it|this)", lambda m: f"2 * {m[1]}"),
    (r"double of (that|it|this)", lambda m: f"2 * {m[1]}"),
    (r"half (?:of )?(that|it|this)", lambda m: f"{m[1]} / 2"),
    (rf"add ({_NUMBER}|that|it) (?:and|to) ({_NUMBER}|that|it)", lambda m: f"{m[1]} + {m[2]}"),
    (rf"({_NUMBER}) and ({_NUMBER})", lambda m: f"{m[1]} + {m[2]}"),
    (rf"subtract ({_NUMBER}|that|it) from ({_NUMBER}|that|it)", lambda m: f"{m[2]} - {m[1]}"),
    (rf"(?:multiply|times) ({_NUMBER}|that|it) (?:and|by|with) ({_NUMBER})", lambda m: f"{m[1]} * {m[2]}"),
    (rf"divide ({_NUMBER}|that|it) by ({_NUMBER})", lambda m: f"{m[1]} / {m[2]}"),
)


def _expression(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        other, after = _product(tokens, at + 1)
        value = value + other if tokens[at] == "+" else value - other
        at = after
    return value, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _power(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        other, after = _power(tokens, at + 1)
        value = value * other if tokens[at] == "*" else value / other
        at = after
    return value, at


def _power(tokens: list[str], at: int) -> tuple[Fraction, int]:
    sign = 1
    while tokens[at] == "-":
        sign, at = -sign, at + 1
    base, at = Fraction(tokens[at]), at + 1
    if at < len(tokens) and tokens[at] == "^":
        exponent, at = _power(tokens, at + 1)
        if exponent == Fraction(1, 2):
            root = math.isqrt(base.numerator), math.isqrt(base.denominator)
            exact = root[0] ** 2 == base.numerator and root[1] ** 2 == base.denominator
            base = Fraction(*root) if exact else Fraction(math.sqrt(base)).limit_denominator(10**9)
        elif exponent.denominator == 1 and abs(exponent) <= 64 and abs(base) <= 10**6:
            base = base**exponent.numerator
        else:
            raise ValueError("not a power that can be said")
    return sign * base, at


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def spoken_sum(plain: str, value: Fraction) -> str:
    """The result as words, after the sum itself when that reads well."""
    if value.denominator == 1 and abs(value) < 10**15:
        words = number_words(int(value))
    else:
        rounded = round(float(value), 2)
        words = f"about {rounded:g}" if rounded != float(value) else f"{rounded:g}"
    asked = re.sub(_ASKING, "", plain.strip(" ?.!")).strip()
    if re.fullmatch(rf"{_NUMBER} (?:plus|minus|times|divided by|multiplied by) {_NUMBER}", asked):
        return f"{asked} is {words}"
    return f"That is {words}"


# ------------------------------------------------------------------------------------------------- time, date, rest


_TIME = (
    r"(?:what|whats|what is|what s) ?(?:is )?(?:the )?(?:current )?time(?: is it| it is)?(?: right)?(?: now)?|"
    r"what time is it.*|how late is it|(?:what is )?the (?:current )?time(?: please)?|give me the time"
)


def _clock(plain: str, now: datetime) -> SkillAnswer | None:
    if re.search(r"\b(?:in|at) (?!the moment|this)[a-z]+\b", plain) and "time" in plain:
        return None  # the time somewhere else
    if re.fullmatch(_TIME, plain):
        hour, minute = now.hour % 12 or 12, now.minute
        half = "in the morning" if now.hour < 12 else "in the afternoon" if now.hour < 18 else "in the evening"
        minutes = "o'clock" if minute == 0 else f"oh {number_words(minute)}" if minute < 10 else number_words(minute)
        return SkillAnswer(f"It is {number_words(hour)} {minutes} {half}.")
    day = re.search(r"\b(today|tomorrow|yesterday)\b", plain)
    asks_day = re.search(r"\b(?:what|which) (?:day|weekday)\b|\bday of the week\b", plain)
    asks_date = re.search(r"\b(?:what|whats|which)\b.*\bdate\b|\bwhat day of the month\b", plain)
    asks_year = re.fullmatch(
        r"(?:what|which) year (?:is it|are we in|is this)(?: now)?|what is the (?:current )?year", plain
    )
    if asks_year:
        return SkillAnswer(f"It is the year {now.year}.")
    if re.fullmatch(r"(?:what|which) month (?:is it|are we in)(?: now)?", plain):
        return SkillAnswer(f"It is {now:%B}.")
    if not (asks_day or asks_date) or (
        not day and not re.search(r"\b(?:is it|is the date|s the date|the date|current)\b", plain)
    ):
        return None
    which = day[1] if day else "today"
    then = now + timedelta(days={"today": 0, "tomorrow": 1, "yesterday": -1}[which])
    verb = "was" if which == "yesterday" else "is" if which == "today" else "will be"
    if asks_day and not asks_date:
        return SkillAnswer(f"{which.capitalize()} {verb} {then:%A}.")
    return SkillAnswer(f"{which.capitalize()} {verb} {then:%A}, {then:%B} {ordinal_words(then.day)}, {then.year}.")


def _stop(plain: str) -> SkillAnswer | None:
    if re.fullmatch(_STOP, plain):
        return SkillAnswer("")
    return None


_HARM = (
    r"\b(?:make|build|construct|assemble|cook|create)\b.*\b(?:bombs?|explosives?|grenade|molotov|pipe bomb|"
    r"nerve gas|poison gas|meth|ricin|chemical weapon|biological weapon|gun at home|weapon)\b",
    r"\b(?:how (?:to|can i|do i|could i|would i)|help me|best way to|ways? to)\b.*"
    r"\b(?:kill|murder|poison|stab|shoot|hurt|kidnap|stalk)\b.*"
    r"\b(?:some ?(?:one|body)|people|person|neighbou?rs?|wife|husband|boss|teacher|him|her|them|man|woman|child)\b",
    r"\b(?:break|sneak|burgle|get) into\b.*\b(?:houses?|homes?|apartments?|cars?|neighbou?rs?|buildings?)\b",
    r"\bburgle\b|\brob (?:a|the|some)\b|\bshoplift\b|\bhot ?wire\b",
    r"\bhack (?:into )?(?:some|my|an?|his|her|their|the)\b|\bsteal (?:a|some|my|his|her|their|the|from)\b|"
    r"\bforge\b.*\b(?:passport|money|signature|id)\b",
)
_SELF_HARM = r"\b(?:kill|hurt|harm) myself\b|\bend my (?:own )?life\b|\bcommit suicide\b|\bwant to die\b|\bsuicid"


def _refuse(plain: str) -> SkillAnswer | None:
    if re.search(_SELF_HARM, plain):
        return SkillAnswer(
            "I am sorry that you feel this way. Please talk to someone now: call your local emergency number or a "
            "crisis line, in the United States and Canada nine eight eight."
        )
    if any(re.search(pattern, plain) for pattern in _HARM):
        return SkillAnswer("I will not help with that, because people could get hurt or be harmed.")
    return None


_PERSONAL = re.compile(
    r"\b(?:what is|whats|what s|do you know|guess|tell me) my (\w+)|\bwho is my (\w+)|"
    r"\bwhere (?:am i|do i live|are my (\w+)|is my (\w+))|"
    r"\bwhat am i (?:wearing|holding|thinking)\b|\bwhat did i (?:eat|have|dream)\b|\bhow old am i\b"
)


def _cannot_know(plain: str, told: str) -> SkillAnswer | None:
    """Questions about the user, unless the user has spoken of the matter before (then the text model has it in its
    turns).
    """
    asked = _PERSONAL.search(plain)
    if asked is None:
        return None
    subject = next((word for word in asked.groups() if word), None)
    spoken_of = subject in told.split() if subject else re.search(r"\bi (?:am|live|had|ate|have|was)\b", told)
    return None if spoken_of else SkillAnswer("I do not know that, because you have not told me.")


_WEATHER = (
    r"\bweather\b|\bgoing to rain\b|\bis it (?:raining|snowing|sunny|cold|hot|warm) (?:outside|today|now)\b|"
    r"\bforecast\b|\bwill it (?:rain|snow)\b|\b(?:temperature|umbrella)\b.*\b(?:today|outside|tomorrow|now)\b"
)


def _about_itself(plain: str) -> SkillAnswer | None:
    if re.search(_WEATHER, plain):
        return SkillAnswer("I work offline, so I cannot see the weather.")
    if re.search(r"\b(?:news|stock price|stock market|exchange rate|football score|score of)\b", plain):
        return SkillAnswer("I work offline, so I do not know today's news or numbers.")
    if re.search(
        r"\bare you (?:a )?(?:human|person|robot|machine|real|alive|computer|an? ai)\b|\bwhat are you\b", plain
    ):
        return SkillAnswer("I am a computer program, a voice assistant that runs on this machine.")
    if re.fullmatch(r"(?:what is|whats|what s|who are) (?:your name|you)|do you have a name|what are you called|"
                    r"what should i call you", plain):  # fmt: skip
        return SkillAnswer(f"My name is {NAME}.")
    return None
