"""Reads which option letters a statement claims and which it denies."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMANDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|bf|rm|left|right|boxed|fbox|quad|displaystyle)\b"
    r"|</?(?:b|strong|i|em|u|code|answer|p|br) ?/?>"
)
_OPERATORS = re.compile(
    r"\\(?:cdot|times|approx|leq?|geq?|neq?|propto|to|rightarrow|equiv|sim|div|pm|mp|in|subset|subseteq|cup|cap|perp)\b"
)
_MARKUP = re.compile(r"[\\*$`\"{}]|(?<!\w)'|'(?!\w)|(?<![^\W_])_|_(?=[\s.,;:!?)_]|$)")
_ANGLED = re.compile(r"<([A-Za-z])>")
_LOWER_CASE = re.compile(r"\(([a-z])\)|^([a-z])(?=[.:)]*$|[:)])")

_CALLED = (
    r"(?:(?:(?:the |is )*(?:correct |right |best )?(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)s?(?: is)?:?"
    r"|\u9009\u9879) ?)?"
)
_IN_A_WORD = r"[^\W\u3040-\u9fff\uac00-\ud7af]|['°#]"  # Chinese, Japanese and Korean write no blank behind a letter
_IN_A_FORMULA = r" ?[=<>^+\u2248\u2260\u2264\u2265\u00d7\u00b7\u221d]|[-\u2013]\w|\([A-Z]\) ?="
_LETTER = rf"(?:\([A-Z]\)|[A-Z])(?!{_IN_A_WORD}|{_IN_A_FORMULA})"
_LIST = rf"(?:(?:, and | and |, or | or |, ?| ?/ ?| ?& ?|[\u548c\u6216\u4e0e]){_LETTER})"
_FIRST = re.compile(rf"(?:[Ee]ither |[Bb]oth |[Oo]nly )?{_CALLED}({_LETTER})")
_ARTICLE = re.compile(
    r"[AI] (?!(?:and|or|but|because|since|as|is|was|for|with|which|given|due|based|by|seems|matches|fits|works|only|not"
    r"|rather|would|can|cannot|does|fails)\b)[a-z]"
)

_BE = r"(?:is|are|was|were|be|been|being|seems?|looks?|appears?|would|could|can|must|has|have|to)"
_WRONG = (
    r"(?:not|never|wrong|incorrect|false|untrue|eliminated|excluded|rejected|discarded|dismissed|impossible|invalid"
    r"|unlikely|implausible|out|off|ruled|no|neither|too)"
)
_MANNER = r"(?:(?:\w+ly|also|just|both|all|therefore|thus) ){0,2}"
_DENIED = re.compile(
    rf"\W{{0,3}}(?:(?:which |that |this )?(?:{_BE} ){{1,3}}{_MANNER}{_WRONG}\b|{_BE}n't\b|cannot\b|can't\b|won't\b"
    r"|fails?\b|do(?:es)?(?: not|n't)\b|\u662f?[\u4e0d\u9519])|\W*\?\W*[Nn]o\b"
    r"|[ ,(\u2013\u2014-]+(?:wrong|incorrect|false|no|eliminated|excluded|rejected|ruled out)\W*$"
    rf"|{_LIST}+ (?:(?:are|were) {_MANNER}{_WRONG}|(?:are|were)n't|cannot|can't|fail|do not|don't)\b"
)
_DENIED_BEFORE = re.compile(r"(?:definitely |certainly |clearly )?(?:not|neither|never|nor|n't|anything but)\b")
_ANY_LETTER = re.compile(rf"(?<![\w(])({_LETTER})")

_EXPLAINS = re.compile(
    r"\b(?:since|because|(?<!well )as(?! well)|for|due|given|so|which|where|when|reason|explanation|than|instead|unlike"
    r"|not|rather)\b"
)
_HEDGE = (
    r"\b(?i:or|maybe|perhaps|possibly|alternatively|otherwise|also|either|potentially|even|might be|may be|could be"
    r"|no|wait|actually|correction)\b"
)
_LISTS = (
    r"[,;/&|(\u2013\u2014?!\u548c\u6216\u4e0e-]|\b(?i:and|but|though|although|while|however|plus|well as|then|vs)\b"
)
_JOINS = r"(?:[,;/&]|\b(?:and|but)\b)"
_BREAKS = rf"^|[.:]|{_LISTS}|{_HEDGE}"
_LABELED = r"\([A-Z]\)|[A-Z](?:[):]|\.(?= ))"
_MORE_LETTERS = re.compile(rf"(?:^[^\w(]*|{_HEDGE}|{_LISTS})(?: |{_HEDGE}|{_LISTS})*+{_CALLED}({_LETTER})")
_MORE_LETTERS_WITH_TEXT = re.compile(
    rf"(?:^[ .:]*{_JOINS}|{_HEDGE})[ ,]*(?:{_HEDGE}[ ,]*)*{_CALLED}({_LETTER})|^[ .:]*({_LETTER})(?=\W*$)"
    rf"|(?:{_BREAKS}) ?{_CALLED}({_LABELED})"
    rf"|(?:^|[.;,(]) ?(?:(?i:but|and|yet|though|however),? )?({_LETTER})(?= {_BE}\b)"
)
_LETTERS_AS_TEXT = re.compile(r"[.:)]* ?(?:[Bb]oth |[Oo]nly )?[A-Z](?:, ?[A-Z])*,? (?:and|or) [A-Z]\b(?!\))")
_PREDICATE = re.compile(
    rf"{_LIST}*[ ,]+"
    rf"({_BE}|{_BE}n't|cannot|can't|won't|fails?|contradicts?|violates?|ignores?|gives?|do|does|did|lacks?|leads?|makes?"
    r"|describes?|refers?|states?|mentions?|requires?|implies|gets?)\b([^.;]*)"
)
_ALSO_RIGHT = re.compile(
    r"\b(?:right|correct|possible|plausible|also|answer|valid|too$|better|best|might|may|could|true|acceptable|fine|well)\b"
)
_NEGATED = re.compile(r"n't\b|\b(?:not|no|never|cannot|wrong|incorrect|too [a-z]+er?)\b")


class OptionLetters(NamedTuple):
    """The letters, in upper case, that a statement claims and denies."""

    claimed: frozenset[str] = frozenset()
    """The claimed letters: several if the statement lists or hedges."""
    denied: frozenset[str] = frozenset()
    """The letters that the statement denies."""


def read_option_letters(statement: str) -> OptionLetters:
    """Returns the letters that begin a statement: "(C) 12 m", "option C, since ...", "A or B", "A is wrong", "not A".

    A letter that begins a word, a formula or an equation ("B = 2 T", "C=O", "A bird") is no option. A later letter
    is claimed too ("A, maybe B"), unless it belongs to an explanation or is dismissed ("C, since A and B are too
    small").
    """
    plain = without_markup(statement)
    if _DENIED_BEFORE.match(plain):
        return OptionLetters(denied=frozenset(letter.strip("()") for letter in _ANY_LETTER.findall(plain)))
    first = _FIRST.match(plain)
    if not first or _ARTICLE.match(plain, first.start(1)):
        return OptionLetters()
    letter, rest = first[1], plain[first.end() :]
    if _DENIED.match(rest):
        return OptionLetters(denied=frozenset(letter.strip("()")))
    return OptionLetters(claimed=frozenset({letter.strip("()"), *_more_letters(rest, labeled=letter[0] == "(")}))


def without_markup(statement: str) -> str:
    """Returns the statement with single spaces, without markup, and with letters in brackets as "(C)"."""
    plain = _OPERATORS.sub("=", _COMMANDS.sub(" ", statement))
    plain = _ANGLED.sub(r"(\1)", _MARKUP.sub(" ", plain))
    plain = " ".join(plain.replace("[", "(").replace("]", ")").split()).replace("( ", "(").replace(" )", ")")
    return _LOWER_CASE.sub(lambda letter: letter.group().upper(), plain)


def _more_letters(rest: str, labeled: bool) -> set[str]:
    """Returns the claimed letters in `rest`, the text after the first letter."""
    explanation = _EXPLAINS.search(rest)
    rest = rest[: explanation.start()] if explanation else rest
    has_text = (labeled or rest[:1] in set(".:)")) and bool(rest.strip(" .:)"))
    if has_text and _LETTERS_AS_TEXT.match(rest):
        return set()
    letters: set[str] = set()
    for match in (_MORE_LETTERS_WITH_TEXT if has_text else _MORE_LETTERS).finditer(rest):
        letter = match[match.lastindex or 0]
        if not _ARTICLE.match(rest, match.end() - len(letter)) and not _is_dismissed(rest[match.end() :]):
            letters.add(letter.strip("().:"))
    return letters


def _is_dismissed(after: str) -> bool:
    """Returns whether the text after a letter says of it something other than that it is an answer."""
    predicate = _PREDICATE.match(after)
    if not predicate:
        return False
    claim = predicate[1] + predicate[2]
    return bool(_NEGATED.search(claim)) or not _ALSO_RIGHT.search(claim)
