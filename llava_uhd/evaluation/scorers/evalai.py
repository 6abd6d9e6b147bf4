"""The EvalAI answer processor of the VQA challenges, as used by multimodal evaluation code.

Its oddities are part of the metric (every published TextVQA and VQAv2 number went through them) and kept: "a,b"
becomes "ab", "it's" becomes "it 's", and only the first 32 periods of a text are removed.
"""

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_ARTICLES = frozenset(("a", "an", "the"))
_PERIOD = re.compile(r"\.(?!\d)")
# The original passes re.UNICODE, whose value is 32, where re.sub expects a count.
_MAX_PERIODS = int(re.UNICODE)

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

# Words that are looked up without their apostrophe. Texts are in lower case by then, so the challenge's capitalized
# entries ("Im", "Ive", "Id've") can never match; they are left out.
_SINGLE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words with two apostrophes, looked up with either of them missing.
_DOUBLE = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_OTHER = {
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "ow's'at": "'ow's'at",
    "somebody'd": "somebodyd",
    "y'all'dve": "y'all'd've",
    "y'alld've": "y'all'd've",
    "yall'd've": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    """Map each misspelled contraction of the challenge to its corrected form."""
    repaired = {word.replace("'", ""): word for word in _SINGLE.split()}
    for word in _DOUBLE.split():
        stem, first, second = word.split("'")
        repaired |= {f"{stem}{first}'{second}": word, f"{stem}'{first}{second}": word}
    return repaired | _OTHER


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)
def evalai_normalize(text: str) -> str:
    """Normalize an answer for comparison.

    In this order: lower case; commas and question marks dropped; " 's" set apart; punctuation dropped where it
    stands next to a space anywhere in the text, else replaced by a space; periods dropped unless a digit follows;
    number words to digits; articles dropped; contractions repaired.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for character in _PUNCTUATION:
        beside_space = f"{character} " in text or f" {character}" in text
        cleaned = cleaned.replace(character, "" if beside_space else " ")
    cleaned = _PERIOD.sub("", cleaned, count=_MAX_PERIODS)
    words = (_NUMBERS.get(word, word) for word in cleaned.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
