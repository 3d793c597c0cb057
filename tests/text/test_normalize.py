"""What a voice reads: a table of written and spoken forms, and the law that reading twice changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.text.normalize import normalize_english, number_words, ordinal_words
from vivavoce.text.numbers import roman_value, year_words

PAIRS = [
    # whole numbers, signs, decimals
    ("I have 3 cats.", "I have three cats."),
    ("0 and 10 and 15", "zero and ten and fifteen"),
    ("101 dalmatians", "one hundred one dalmatians"),
    ("1,234,567 people", "one million two hundred thirty-four thousand five hundred sixty-seven people"),
    ("1000000 ants", "one million ants"),
    ("-5 is below 0", "minus five is below zero"),
    ("3.14159", "three point one four one five nine"),
    (".5 and 0.05", "point five and zero point zero five"),
    ("1,024.5", "one thousand twenty-four point five"),
    ("agent 007", "agent zero zero seven"),
    (
        "12345678901234567890",
        "one two three four five six seven eight nine zero one two three four five six seven eight nine zero",
    ),
    ("It ended 3.", "It ended three."),
    ("10 000", "ten zero zero zero"),
    # ordinals
    ("1st, 2nd, 3rd, 4th", "first, second, third, fourth"),
    ("the 21st century", "the twenty-first century"),
    ("my 100th and 112th try", "my one hundredth and one hundred twelfth try"),
    ("the 1,000th visitor", "the one thousandth visitor"),
    # years and decades
    ("in 1999", "in nineteen ninety-nine"),
    ("in 1905", "in nineteen oh five"),
    ("in 1900", "in nineteen hundred"),
    ("in 2000, 2005 and 2024", "in two thousand, two thousand five and twenty twenty-four"),
    ("in 1066", "in one thousand sixty-six"),
    ("the 1990s", "the nineteen nineties"),
    ("the '80s and the 60s", "the eighties and the sixties"),
    ("the 1960's", "the nineteen sixties"),
    ("1939–1945", "nineteen thirty-nine to nineteen forty-five"),
    ("300 BC", "three hundred BC"),
    # dates
    ("May 17, 2024", "May seventeenth, twenty twenty-four"),
    ("on May 17th", "on May seventeenth"),
    ("17 May 2024", "the seventeenth of May twenty twenty-four"),
    ("the 4th of July", "the fourth of July"),
    ("Jan. 5", "January fifth"),
    ("Sept 3, 1990", "September third, nineteen ninety"),
    ("2024-05-17", "May seventeenth, twenty twenty-four"),
    ("5/17/2024", "May seventeenth, twenty twenty-four"),
    ("17/5/2024", "May seventeenth, twenty twenty-four"),
    ("12/25/99", "December twenty-fifth, nineteen ninety-nine"),
    ("in March 2021", "in March twenty twenty-one"),
    ("You may 3 times", "You may three times"),
    ("On 25 December.", "On the twenty-fifth of December."),
    ("the class of '99", "the class of ninety-nine"),
    ("44 B.C.", "forty-four BC."),
    # times
    ("a score of 3:2", "a score of three to two"),
    ("7:30 pm", "seven thirty PM"),
    ("at 7:05", "at seven oh five"),
    ("at 7:00", "at seven o'clock"),
    ("7:00 p.m. sharp", "seven PM sharp"),
    ("at 9 a.m. today", "at nine AM today"),
    ("9am to 5pm", "nine AM to five PM"),
    ("19:45", "nineteen forty-five"),
    ("12:30:15", "twelve thirty and fifteen seconds"),
    # money
    ("$1", "one dollar"),
    ("$3.50", "three dollars and fifty cents"),
    ("$0.99", "ninety-nine cents"),
    ("$1.01", "one dollar and one cent"),
    ("$1,000", "one thousand dollars"),
    ("$5 million", "five million dollars"),
    ("$2.5bn", "two point five billion dollars"),
    ("$10k", "ten thousand dollars"),
    ("£77", "seventy-seven pounds"),
    ("£1.50", "one pound and fifty pence"),
    ("€20.05", "twenty euros and five cents"),
    ("20 €", "twenty euros"),
    ("5€", "five euros"),
    ("¥500", "five hundred yen"),
    ("-$5", "minus five dollars"),
    ("US$40", "forty dollars"),
    ("$5-10", "five to ten dollars"),
    ("$5-$10 million", "five to ten million dollars"),
    ("50¢", "fifty cents"),
    ("3 million people", "three million people"),
    ("5k steps", "five thousand steps"),
    ("$0.50/hour", "fifty cents per hour"),
    ("3,50 €", "three euros and fifty cents"),
    # units
    ("100 km/h", "one hundred kilometers per hour"),
    ("60 mph", "sixty miles per hour"),
    ("5 kg", "five kilograms"),
    ("1 kg", "one kilogram"),
    ("2.5 GHz", "two point five gigahertz"),
    ("16GB of RAM", "sixteen gigabytes of RAM"),
    ("3 MB", "three megabytes"),
    ("10%", "ten percent"),
    ("99.9%", "ninety-nine point nine percent"),
    ("20 °C", "twenty degrees Celsius"),
    ("-4°F", "minus four degrees Fahrenheit"),
    ("1°C", "one degree Celsius"),
    ("a 90° angle", "a ninety degrees angle"),
    ("5 m²", "five square meters"),
    ("10 m/s", "ten meters per second"),
    ("250 ml", "two hundred fifty milliliters"),
    ("6'2\" tall", "six foot two tall"),
    ("30 min", "thirty minutes"),
    ("a 5G phone in 3D", "a five G phone in three D"),
    ("5-10 km", "five to ten kilometers"),
    ("5%–10%", "five to ten percent"),
    ("pages 3-5", "pages three to five"),
    ("2 lbs. of meat", "two pounds of meat"),
    ("6 ft 2 in tall", "six feet two inches tall"),
    ("Room 5B at 221B Baker St.", "Room five B at two hundred twenty-one B Baker Street."),
    ("two 747s", "two seven hundred forty-sevens"),
    # telephone numbers
    ("555-123-4567", "five five five, one two three, four five six seven"),
    ("(555) 123-4567", "five five five, one two three, four five six seven"),
    ("+1 555 123 4567", "plus one, five five five, one two three, four five six seven"),
    ("call 555-0199", "call five five five, zero one nine nine"),
    # fractions and sums
    ("1/2 cup", "one half cup"),
    ("3/4", "three quarters"),
    ("2/3", "two thirds"),
    ("1 1/2 cups", "one and a half cups"),
    ("2½ hours", "two and a half hours"),
    ("5/8", "five eighths"),
    ("24/7", "twenty-four seven"),
    ("2 + 2 = 4", "two plus two equals four"),
    ("2+2=4", "two plus two equals four"),
    ("3 * 4", "three times four"),
    ("2 × 3", "two times three"),
    ("10 - 4 = 6", "ten minus four equals six"),
    ("5 > 3 and 2 < 4", "five greater than three and two less than four"),
    ("50 ± 3", "fifty plus or minus three"),
    ("~50 people", "about fifty people"),
    # Roman numerals
    ("Henry VIII", "Henry the eighth"),
    ("Queen Elizabeth II was", "Queen Elizabeth the second was"),
    ("World War II", "World War two"),
    ("Chapter IV", "Chapter four"),
    ("Charles V", "Charles the fifth"),
    ("I am here", "I am here"),
    ("vitamin C and plan V", "vitamin C and plan V"),
    # abbreviations
    ("Dr. Smith", "Doctor Smith"),
    ("Mr. and Mrs. Brown", "Mister and Missus Brown"),
    ("10 Elm St. in Ohio", "ten Elm Street in Ohio"),
    ("St. Paul's", "Saint Paul's"),
    ("e.g. apples", "for example apples"),
    ("fruit, i.e. apples, etc.", "fruit, that is apples, et cetera."),
    ("Prof. Lee vs. Gen. Kim", "Professor Lee versus General Kim"),
    ("No. 5", "number five"),
    ("see p. 12", "see page twelve"),
    ("Acme Inc. grew", "Acme Incorporated grew"),
    ("Martin Luther King Jr.", "Martin Luther King Junior."),
    ("coffee w/ milk, w/o sugar", "coffee with milk, without sugar"),
    ("a Ph.D. student", "a PhD student"),
    ("the U.S. economy", "the US economy"),
    ("in the U.S.A.", "in the USA."),
    ("Mrs. R. A. Reid and Lee H. Oswald", "Missus R A Reid and Lee H Oswald"),
    ("It was I. He took vitamin C. It helped.", "It was I. He took vitamin C. It helped."),
    ("NASA and the FBI", "NASA and the FBI"),
    # symbols
    ("you & me", "you and me"),
    ("#1 in #music", "number one in hashtag music"),
    ("he/she and/or they", "he slash she and or they"),
    ("snake_case", "snake case"),
    ("A → B", "A to B"),
    # addresses
    ("https://www.example.com/a-b?x=1", "example dot com slash a dash b question mark x equals one"),
    ("See http://example.org.", "See example dot org."),
    ("www.test.co.uk", "www dot test dot co dot uk"),
    ("example.com", "example dot com"),
    ("john.doe@mail.com", "john dot doe at mail dot com"),
    ("a_b-7@x.io", "a underscore b dash seven at x dot io"),
    # names with digits
    ("v1.2.3", "version one point two point three"),
    ("COVID-19", "COVID nineteen"),
    ("an mp3 on the A4", "an mp three on the A four"),
    ("a 10-year-old", "a ten-year-old"),
    # markdown
    ("**Bold** and *it* and `code`", "Bold and it and code"),
    ("[a link](http://x.y/z)", "a link"),
    ("# Title", "Title"),
    ("- one\n- two", "one two"),
    ("> quoted", "quoted"),
    ("~~no~~ __yes__ _maybe_", "no yes maybe"),
    ("Title\n\nText", "Title. Text"),
    ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b, one, two"),
    # emoji, control characters, quotes, dashes, runs of marks
    ("😀 hi 👍🏽 there", "hi there"),
    ("a\u200bb\x00c", "ab c"),
    ("“Quoted” and ‘single’", "\"Quoted\" and 'single'"),
    ("wait—what", "wait — what"),
    ("yes -- no", "yes — no"),
    ("state-of-the-art", "state-of-the-art"),
    ("Really?!! Wow!!!", "Really? Wow!"),
    ("Hmm…", "Hmm..."),
    ("naïve café", "naïve café"),
    ("Ｈｅｌｌｏ", "Hello"),
    ("  spaced   out  ", "spaced out"),
    ("it's don't o'clock", "it's don't o'clock"),
    ("", ""),
    ("😀", ""),
]


@pytest.mark.parametrize(("written", "spoken"), PAIRS)
def test_pairs(written, spoken):
    assert normalize_english(written) == spoken


@pytest.mark.parametrize(("written", "spoken"), PAIRS)
def test_reading_twice_changes_nothing_on_the_table(written, spoken):
    assert normalize_english(spoken) == spoken


BITS = [*" .,;:!?-–—'\"()[]{}<>#@&*_`~^+=/\\|%$€£°½²…\n\t", *"0123456789", *"aBIVXé", "👍", "\u200d", "日"]
BITS += [
    "Dr. ",
    "St. ",
    "km",
    " $5",
    "May 3",
    "p.m.",
    "U.S.",
    "etc.",
    "http://a.b",
    "x@y.z",
    "No. ",
    "II",
    "th",
    "1/2",
    "w/",
    "v1.2",
]


@given(st.lists(st.sampled_from(BITS), max_size=24).map("".join) | st.text(max_size=40))
@settings(max_examples=400, deadline=None)
def test_idempotent_and_clean(text):
    once = normalize_english(text)
    assert normalize_english(once) == once
    assert not any(char.isdigit() and char.isascii() for char in once)
    assert not set(once) & set("@#&*_`^+=<>|\\$€£%{}[]\n\t\x00")
    assert "  " not in once and once == once.strip()


@given(st.integers(0, 10**30 - 1))
def test_number_words_read_back(n):
    assert _value(number_words(n)) == n


def _value(words: str) -> int:
    scales = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15}
    scales |= {"quintillion": 10**18, "sextillion": 10**21, "septillion": 10**24, "octillion": 10**27}
    small = {number_words(k): k for k in range(100)}
    total = part = 0
    for word in words.split():
        if word in scales:
            total, part = total + part * scales[word], 0
        elif word == "hundred":
            part *= 100
        else:
            part += small[word]
    return total + part


def test_numbers_as_words():
    assert number_words(-40) == "minus forty"
    assert number_words(10**30) == " ".join(["one", *["zero"] * 30])
    assert [ordinal_words(n) for n in (1, 5, 8, 9, 12, 20, 22, 40, 100)] == [
        *("first", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-second", "fortieth", "one hundredth"),
    ]
    assert year_words(2010) == "twenty ten"
    assert [roman_value(numeral) for numeral in ("XIV", "MCMXCIV", "IIII", "", "VX")] == [14, 1994, None, None, None]


def test_long_runs_of_one_thing_take_linear_time():
    for unit in ("1", "a1 ", "*", "$5 ", "1/2", "a@", "[", "\n", "a.", " "):
        normalize_english((unit * 20_000)[:20_000])
