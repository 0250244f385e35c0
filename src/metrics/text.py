"""Text processing of answers: the tokens of the headline scores, and the answer normalisation of the VQA challenge."""

import functools
import re

WORD = re.compile(r"[^\W_]+")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"} | {
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = {"a", "an", "the"}
# The challenge restores contractions that lost one apostrophe. Its entries for "I" never match, because the text is in lower case.
CONTRACTED_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word[:n] + word[n + 1 :]: word for word in CONTRACTED_WORDS.split() for n, letter in enumerate(word) if letter == "'"}
CONTRACTIONS |= {"somebody'd": "somebodyd"}  # as published, with key and value swapped


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case: 'X-ray, 2.5 cm' gives x, ray, 2, 5, cm."""
    return WORD.findall(text.lower())


@functools.lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Answer normalisation of the VQA challenge (GT-Vision-Lab/VQA, `processPunctuation` and `processDigitArticle`).

    The result is in lower case. Punctuation becomes a space, or is removed if it is next to a space or the text contains a comma between
    digits. At most 32 periods not followed by a digit are removed. This copies two bugs of the published code: it should also keep periods
    after a digit, and 32 is a regex flag passed by mistake as `count`. Number words up to ten become digits ('none' becomes 0), articles
    are removed, and lost apostrophes are restored.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    digits = DIGIT_COMMA.search(text) is not None
    clean = text
    for mark in PUNCTUATION:
        if mark in text:
            next_to_space = f"{mark} " in text or f" {mark}" in text
            clean = clean.replace(mark, "" if next_to_space or digits else " ")
    clean = PERIOD.sub("", clean, count=32)
    tokens = [NUMBERS.get(word, word) for word in clean.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in tokens if word not in ARTICLES)
