"""Normalizes a short answer: an option, a decision, a number, a row of brackets, or words."""

from __future__ import annotations

import re
import unicodedata

from tempo_megatron.grading.answer_statements import MAX_STATEMENT_CHARACTERS
from tempo_megatron.grading.ascii_text import to_ascii
from tempo_megatron.grading.option_letters import read_option_letters

_COMMANDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|rm|bf|boxed|fbox)\b"
    r"|</?(?:b|strong|i|em|u|code|answer|p|br) ?/?>"
)
_SPACES = re.compile(r"\\[ ,;:!]|\\q?quad\b|(?<=\w)~(?=\w)")
_MARKUP = re.compile(r"\\[()\[\]]|[$`\"\\]|(?<!\w)'|'(?!\w)|(?<![\d ])\*|\*(?![\d ])|(?<![^\W_])_|_(?![^\W_])")
_BRACKETS_MARKUP = re.compile(r"[\\$*`\"',;\s]|\.$")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")

_INTRODUCTION = re.compile(
    r"(?:[#\u2022\u2192\u21d2\u2600-\u27bf\U0001f300-\U0001faff]+ ?)?"  # headings, bullets, arrows, pictures
    r"(?:(?:so|therefore|thus|hence|then|overall|finally),? )*"
    r"(?:(?:the (?:final |correct )?answer (?:is|would be):?|it is|it's|that is|that's|this is|they are|there are"
    r"|there is|we get|we have|i have|i get)(?= )"
    r"|(?:the )?(?:sorted|ordered|alphabetical)[a-z ]{0,40}(?:\b(?:is|are):?|:)|=)? ?(?=\S)"
)
_SENTENCE = re.compile(
    r"(?P<subject>(?:[a-z][a-z ]{0,40}: )?[^.?!;:]{1,200}?)(?::| (?:is|are|equals|has|have|contains|contain)):? "
    r"(?:(?:deductively|logically|formally|clearly|therefore|thus|definitely|indeed|actually) )?(?P<predicate>.+)"
)
_CLOSING_BRACKETS = re.compile(r"[^()\[\]{}<>]{1,200}(?:\bis|\bare|:):? {0,3}([()\[\]{}<> ]*[()\[\]{}<>]) ?\.?")
_JSON_END = re.compile(r"\}[\s`}]*$")

_DOUBTFUL_SUBJECT = re.compile(
    r"n't\b|\b(?:not|no|never|nobody|neither|none|cannot|if|whether|unless|or|possible|possibly|maybe|perhaps|might|could|may"
    r"|unlikely|wrong|incorrect|first|second|third|half|twice|other|another|each|at)\b"
)
_BOOLEAN = re.compile(r"(?=.*\b(?:true|false)\b)(?:not|and|or|true|false|[() ])+")

_OPTION = re.compile(r"(?:(?:the )?(?:[Oo]ption|[Cc]hoice) )?(?:\([A-Za-z]\)|[A-Za-z]\) |[A-Za-z][.:)]*$)")
_SEVERAL_OPTIONS = re.compile(r"[A-Z](?:,? (?:or|and|maybe|perhaps|possibly|alternatively)\b|[,/&] ?[A-Z]\b)")

_OPPOSITES = {"yes": "no", "true": "false", "valid": "invalid"}
_OPPOSITES |= {opposite: decision for decision, opposite in _OPPOSITES.items()}
_DECISION = re.compile(r"(yes|no|true|false|valid|invalid)\b")
_CONTINUES_AFTER_DECISION = re.compile(
    r"$|[^\w\s/]| (?:since|because|as|it|he|she|they|there|this|that|these|those|the|you|we|i|so|for|given|indeed|when"
    r"|all|both|due|in|by|is (?:the )?(?:\w+ )?(?:answer|correct|right|true))\b| [^\w\s]"
)
_HEDGE = r"(?:or|maybe|perhaps|possibly|alternatively|potentially|unless)"
_UNDECIDED = re.compile(
    rf"\W*{_HEDGE}\b|/| (?:(?:is|was|would|can|could|seems|must|has|to|be) )+(?:\w+ly )?"
    r"(?:not|never|wrong|incorrect|false|out)\b"
    r"|,? (?:isn't|wasn't|cannot|can't|won't|doesn't)\b"
)
_EXPLAINS = re.compile(r"\b(?:since|because|as|due|given|reason|for|if|when)\b")
_CLAUSE = re.compile(r"[^.,;:?!()\[\]\u2013\u2014-]+")
_NEGATED = re.compile(r"n't\b|\b(?:not|never|neither|nor|without)\b")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_ONES += " eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: str(number) for number, word in enumerate(_ONES.split())}
_WORDS |= {word: str(10 * number) for number, word in enumerate(_TENS.split(), 2)}
_WORDS |= {
    f"{ten}{separator}{unit}": str(10 * tens + units)
    for tens, ten in enumerate(_TENS.split(), 2)
    for units, unit in enumerate(_ONES.split()[1:10], 1)
    for separator in "- "
}
_SPELLED_SIGN = re.compile(r"(?:minus|negative) (?=\d)")
_DIGITS = r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
_SPELLED = "|".join(sorted(_WORDS, key=len, reverse=True))
_NUMBER = re.compile(rf"({_DIGITS}|{_SPELLED})(?P<counted>(?: [a-z][a-z'-]*){{0,3}})")
_HEDGED_NUMBER = re.compile(rf"(?:{_DIGITS}|{_SPELLED})\b.{{0,40}}?\b{_HEDGE}\b.{{0,40}}?(?:\d|\b(?:{_SPELLED})\b)")
_NAME = re.compile(r"[a-z][a-z ]{0,60}")
_OPERATORS = "+*/^\u00d7\u00b7\u00f7=-"
_ARITHMETIC = re.compile(rf"[\d\s().,]*+[{_OPERATORS}][\d\s().,{_OPERATORS}]*")
# A word that changes the value of the number before it, or makes it no value.
_CHANGES_VALUE = re.compile(
    r"\b(?:hundred|thousand|[mbtr]+illion|dozens?|pairs?|couples?|scores?|tens|half|halves|thirds?|quarters?|tenths|hundredths|percent|squared|cubed"
    r"|factorial|minus|plus|times|over|by|to|of|out|at|than|more|less|fewer|most|least|or|and|but|if|maybe|perhaps|possibly|about|roughly"
    r"|approximately|each|per"
    r"|is|are|was|were|not|cannot|wrong|incorrect)\b"
)
# A unit of measurement belongs to the answer: "5 minutes" is not 5, because a label "5 years" must not equal it.
_MEASURE = re.compile(
    r"\b(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?|am|pm|cents?|dollars?|euros?|pounds?|[mck]?m|(?:kilo|centi"
    r"|milli)?met(?:er|re)s?|miles?|inch|inches|foot|feet|k?g|(?:kilo)?grams?|tons?|lit(?:er|re)s?|degrees?)\b"
)
_NUMBERING = re.compile(r"(?:^|(?<= ))\d{1,3}[.)] (?=[a-z])")
_BULLET = re.compile(r"[-+\u2022] (?=[a-z])")
_LIST_CONJUNCTION = re.compile(r",? and |,")
_ENUMERATION = re.compile(r"[^\W\d_][\w' -]*(?:[;|<>\u2192][\w' -]+)+")
_LIST_SEPARATORS = re.compile(r"[;|<>\u2192]")


def normalize_answer(text: str) -> str:
    """Returns the answer's canonical form in lower case, without markup; "" for several answers and for a denial.

    "(A) because ..." becomes (a), "Yes, since ..." yes, "There are 1,234.0 apples." 1234, and "x = 8" or "eight" 8.
    A row of brackets has no blanks. Lists are words with single spaces.
    """
    text = _COMMANDS.sub("", to_ascii(text))
    brackets = _CLOSING_BRACKETS.fullmatch(text)
    if brackets or not any(map(str.isalnum, text)):
        return _BRACKETS_MARKUP.sub("", brackets[1] if brackets else text)
    text = _JSON_END.sub("", text) if "{" not in text else text
    plain = _IN_BRACES.sub(r"\1", _MARKUP.sub("", _SPACES.sub(" ", text.replace(r"\{", "{"))))
    plain = " ".join(plain.split()).lstrip(" ,;").rstrip(" .!,;")
    lowered = plain.lower()
    introduction = _INTRODUCTION.match(lowered)
    if introduction and introduction.end() < len(lowered):
        plain, lowered = plain[introduction.end() :], lowered[introduction.end() :]
    for form in (_option(plain), _decision(lowered), _number(lowered), _sentence(lowered)):
        if form is not None:
            return form
    return _words(lowered)


def is_single_word(text: str) -> bool:
    """Returns whether a normalized answer is one word of a possible list: no option, decision or number."""
    return text.isalpha() and text not in _OPPOSITES


def _option(plain: str) -> str | None:
    """Returns an option's letter as "(a)"; "" for several letters and for a denial; None if the text is no option."""
    if len(plain) > MAX_STATEMENT_CHARACTERS or not (_OPTION.match(plain) or _SEVERAL_OPTIONS.match(plain)):
        return None
    letters = read_option_letters(plain).claimed
    return f"({min(letters).lower()})" if len(letters) == 1 else ""


def _decision(plain: str) -> str | None:
    """Returns the decision that begins the text; "" if it is denied or its opposite follows; None if there is none."""
    left, _, value = plain.rpartition("=")
    decision = _DECISION.match(value.lstrip() if _BOOLEAN.fullmatch(left) else plain)
    if not decision:
        return None
    rest = decision.string[decision.end() :]
    explanation = _EXPLAINS.search(rest)
    claim = rest[: explanation.start()] if explanation else rest
    if _UNDECIDED.match(rest) or any(
        clause.split()[-1:] == [_OPPOSITES[decision[1]]] and not _NEGATED.search(clause)
        for clause in _CLAUSE.findall(claim)
    ):
        return ""
    return decision[1] if _CONTINUES_AFTER_DECISION.match(rest) else None


def _number(plain: str) -> str | None:
    """Returns a number that stands alone, counts things, or follows `name =` or arithmetic.

    Returns "" if several numbers may be meant, and None if the text is no number.
    """
    left, equals, value = plain.rpartition("=")
    if equals and not _NAME.fullmatch(left.strip()) and not _ARITHMETIC.fullmatch(left.strip()):
        return None
    number = _NUMBER.fullmatch(_SPELLED_SIGN.sub("-", value.strip(), count=1))
    if number and not _CHANGES_VALUE.search(number["counted"]) and not _MEASURE.search(number["counted"]):
        return _WORDS.get(number[1]) or _plain_digits(number[1])
    return "" if _HEDGED_NUMBER.match(plain) else None


def _plain_digits(number: str) -> str:
    """Returns the number without plus sign, thousands' commas and redundant zeros. It keeps any number of digits."""
    digits = "".join(char if char in "+-.," else str(unicodedata.decimal(char)) for char in number)
    integer_part, _, fraction = digits.lstrip("+-").replace(",", "").partition(".")
    value = ".".join(filter(None, (integer_part.lstrip("0") or "0", fraction.rstrip("0"))))
    return f"-{value}" if digits.startswith("-") and value != "0" else value


def _sentence(plain: str) -> str | None:
    """Returns the decision, number or option that a sentence says of its subject: "The argument is invalid"."""
    sentence = _SENTENCE.fullmatch(plain)
    if not sentence:
        return None
    subject, predicate = sentence["subject"], sentence["predicate"]
    if _DOUBTFUL_SUBJECT.search(subject) and not _BOOLEAN.fullmatch(subject):
        return None
    option = _option(predicate) if predicate.startswith("(") else None
    return _decision(predicate) or _number(predicate) or option or None


def _words(plain: str) -> str:
    """Returns the words of an answer or a list with single spaces, without separators, numbering and brackets."""
    words = plain[1:-1] if plain[:1] + plain[-1:] in ("[]", "()") else plain
    words = _BULLET.sub("", words.replace("->", "\u2192"), count=1)
    if _NUMBERING.match(words):
        words = _NUMBERING.sub("", words)
    if _ENUMERATION.fullmatch(words):
        words = _LIST_SEPARATORS.sub(" ", words)
    if "," in words:
        words = _LIST_CONJUNCTION.sub(" ", words)
    return " ".join(words.split())
