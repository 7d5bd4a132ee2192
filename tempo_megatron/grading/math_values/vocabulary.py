"""LaTeX commands, and words of English and other languages, that the grader `math` knows."""

from __future__ import annotations

from fractions import Fraction


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


GREEK = _names(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
)
PARSED_COMMANDS = GREEK | _names(
    """frac sqrt binom choose pi infty sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min
    gcd mod cdot times div lfloor rfloor lceil rceil sum prod int lim to det degree operatorname{lcm}
    operatorname{cis}"""
)
"""Commands that math-verify's parser reads, or that are rewritten for it."""

RELATIONS = _names(
    """le ge ne in notin approx equiv sim simeq mid nmid to subset subseteq supset propto cong iff implies Rightarrow
    rightarrow Leftrightarrow perp parallel ll gg asymp"""
)
FONTS = _names(
    """text textbf textit textrm textnormal texttt textsf textsc textup mathrm mathbf mathit mathsf mathtt mathcal
    mathnormal mathord mathop bm boldsymbol pmb emph underline mbox hbox ensuremath boxed fbox operatorname
    uline"""
)
IGNORED_COMMANDS = _names(
    """left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr mleft mright displaystyle textstyle
    scriptstyle limits nolimits tiny small normalsize large Large LARGE huge Huge rm bf it tt sf mathstrut
    strut"""
)
IGNORED_COMMANDS_WITH_ARGUMENT = _names("phantom hphantom vphantom hspace vspace label tag")
FUNCTIONS = _names(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min gcd det pi theta alpha beta
    gamma infty sqrt mod"""
)
"""Names of commands that people write without a backslash."""

SHORT_WORDS = _names("sq cu cm mm km dm kg mg ml ft lb oz hr am pm or no mi in is")
"""Pairs of letters that are a word and not a product."""

PRODUCTS = _names("abc abcd xyz pqr rst uvw xyzw ijk bca cab acb bac cba zyx yzx")
"""Three or more letters that are a product and not a word."""

QUALIFIERS = _names(
    """is are was were be isn't not no none never cannot can't neither nor wrong false incorrect invalid impossible
    undefined unknown untrue right correct true or and but maybe perhaps possibly probably likely
    approximately approx about around almost nearly roughly more less fewer least most than over under above
    below between up down only except plus minus negative squared cubed factorial half halves third thirds
    quarter quarters fourth fifth fifths sixth sixths eighth eighths tenth tenths hundredth hundredths
    thousandth thousandths millionth millionths pair pairs couple couples triple triples score scores gross
    hundreds thousands millions billions trillions dozens twice double base mod modulo remainder if when
    unless for where to by from with without either both any some other another else too larger smaller
    greater bigger higher lower off guess answer answers before after until since because that this these
    those it i we you they at doubled tripled quadrupled halved ish fold twofold threefold tenfold hundredfold googol
    kilo ppm
    oder mehr weniger nicht kein keine mindestens höchstens etwa ungefähr falsch über unter
    o más menos falso ou moins pas environ presque faux
    или более менее не около примерно больше меньше неверно"""
)
"""Words beside a number that deny, hedge, compare or multiply it."""

FILLERS = _names(
    """different distinct possible total of the in all a an full whole positive such ordered remaining per each new"""
)
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "quadrillion": 10**15, "quintillion": 10**18, "lakh": 10**5, "crore": 10**7, "mln": 10**6, "bn": 10**9,
    "tausend": 10**3, "millionen": 10**6, "milliarden": 10**9, "mil": 10**3, "mille": 10**3, "millones": 10**6,
    "milioni": 10**6, "milhões": 10**6, "тысяч": 10**3, "тысячи": 10**3, "тыс": 10**3, "миллиона": 10**6,
    "миллионов": 10**6, "млн": 10**6, "百": 100, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
}  # fmt: skip
_INCH, _POUND = Fraction(254, 10_000), Fraction(45_359_237, 10**8)
MEASURES: dict[str, dict[str, Fraction | int]] = {
    "length": {"nm": Fraction(1, 10**9), "mm": Fraction(1, 1000), "cm": Fraction(1, 100), "dm": Fraction(1, 10), "m": 1,
               "km": 1000, "inch": _INCH, "foot": 12 * _INCH, "yard": 36 * _INCH, "mile": 63_360 * _INCH},
    "mass": {"mg": Fraction(1, 10**6), "g": Fraction(1, 1000), "kg": 1, "ton": 1000, "pound": _POUND,
             "ounce": _POUND / 16},
    "time": {"ms": Fraction(1, 1000), "second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800},
    "months": {"month": 1, "year": 12},
    "volume": {"ml": Fraction(1, 1000), "liter": 1, "gallon": Fraction(3_785_411_784, 10**9)},
    "dollars": {"dollar": 1, "cent": Fraction(1, 100)},
    "euros": {"euro": 1}, "pounds": {"£": 1}, "yuan": {"yuan": 1}, "yen": {"¥": 1}, "rupees": {"rupee": 1},
    "angle": {"degree": 1}, "radians": {"radian": 1}, "percent": {"percent": 1},
}  # fmt: skip
"""Maps a dimension to its units, and each unit to its size in the dimension's base unit."""

SPELLINGS = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "in": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile",
    "kilogram": "kg", "gram": "g", "gm": "g", "milligram": "mg", "lb": "pound", "oz": "ounce", "s": "second",
    "sec": "second",
    "min": "minute", "h": "hour", "hr": "hour", "litre": "liter", "l": "liter", "L": "liter", "mL": "ml",
    "milliliter": "ml",
    "gal": "gallon", "inches": "inch", "€": "euro", "$": "dollar", "usd": "dollar", "¢": "cent", "元": "yuan",
    "₹": "rupee",
    "deg": "degree", "°": "degree", "rad": "radian", "pct": "percent", "percentage": "percent", "rs": "rupee",
    "yr": "year",
    "men": "man", "women": "woman", "people": "person", "children": "child", "%": "percent",
}  # fmt: skip
BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12,
    "sixteen": 16,
}  # fmt: skip
