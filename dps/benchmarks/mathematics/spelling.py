r"""One spelling for mathematics: Unicode, plain text and the many ways of LaTeX become one normal form.

The normal form keeps what decides the meaning: a comma that separates a list is followed by a space outside brackets
(``100, 200``), a comma between thousands is not (``100,200``). Everything here is bounded by :data:`LONGEST_ANSWER`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from dps.benchmarks.mathematics.words import multiplied, spelt_number

LONGEST_ANSWER = 1000
"""Characters; what is longer is no answer."""
DEEPEST = 40
"""Brackets within brackets; what is nested deeper is no answer."""

_MOST_PASSES = 3
"""Nonsense may need more than one pass until nothing changes."""

_SPACES = dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\x00\t\n\r", " ")
_DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-")
_GONE = dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063", None)
_WIDE = {chr(0xFF10 + digit): str(digit) for digit in range(10)}
_GREEK = {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): rf"\{name} "
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "mu", "pi", "rho", "sigma", "tau", "phi",
                 "chi", "psi", "omega")
}  # fmt: skip
_CHARACTERS = str.maketrans(
    _SPACES | _DASHES | _GONE | _WIDE | _GREEK
    | {"λ": r"\lambda ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
       "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ", "⁄": "/", "∕": "/",
       "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ",
       "′": "'", "％": "%", "，": ",", "ℝ": r"\mathbb{R}"}
)  # fmt: skip

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_ROOT = re.compile(r"([√∛∜])\s*(?:\{|(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+|\([^()]*\)))?")


def plain_characters(text: str) -> str:
    r"""Return a text of any length with its Unicode mathematics in LaTeX, in linear time.

    >>> plain_characters("10² − 3½"), plain_characters("√10")  # raised digits are an exponent
    ('10^{2} - 3\\frac{1}{2}', '\\sqrt{10}')
    """
    if text.isascii() and "\x00" not in text:
        return text
    text = _on_the_line(text, "{", "}")
    return _ROOT.sub(_root, _VULGAR.sub(_vulgar, text).translate(_CHARACTERS))


def one_line(text: str) -> str:
    """Return words with their raised and lowered digits and fractions on the line: ``m^2``, ``3 1/2 cups``."""
    text = _on_the_line(text, "", "")
    return _VULGAR.sub(lambda sign: " " + "/".join(_halves(sign[0])), text)


def _on_the_line(text: str, opening: str, closing: str) -> str:
    text = _RAISED_RUN.sub(lambda run: f"^{opening}{run[0].translate(_RAISED)}{closing}", text)
    return _LOWERED_RUN.sub(lambda run: f"_{opening}{run[0].translate(_LOWERED)}{closing}", text)


def _halves(sign: str) -> tuple[str, str]:
    """Return numerator and denominator of a fraction that is one character."""
    top, _, bottom = unicodedata.normalize("NFKC", sign).partition("\u2044")
    return top, bottom


def _vulgar(sign: re.Match[str]) -> str:
    top, bottom = _halves(sign[0])
    return rf"\frac{{{top}}}{{{bottom}}}"


def _root(sign: re.Match[str]) -> str:
    command = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}[sign[1]]
    if sign[2] is None:
        return command + sign[0][1:].lstrip()
    inside = sign[2]
    return f"{command}{{{inside[1:-1] if inside[0] == '(' else inside}}}"


def normalize(text: str, *, words: bool = True) -> str:
    r"""Return LaTeX in one spelling: no dollar signs, sizes of brackets, kinds of fractions, no final full stop.

    A mixed number becomes one fraction, spaces between thousands go, and with ``words`` a number in words is one in
    digits. What is too long or nested too deeply gives an empty text. Applied twice, it changes nothing more.

    >>> normalize(r"$\left( 3, \dfrac{\pi}2 \right).$"), normalize(r"2\frac12"), normalize("3,5, 7")
    ('(3,\\frac{\\pi}{2})', '\\frac{5}{2}', '3, 5, 7')
    """
    return "" if len(text) > LONGEST_ANSWER else _normalized(text, words)


@lru_cache(maxsize=10_000)
def _normalized(text: str, words: bool) -> str:
    plain = unwrapped(plain_characters(text), _BRACE)
    for _ in range(_MOST_PASSES):
        before, plain = plain, _respelt(plain, words)
        if plain == before:
            break
    return plain


def unwrapped(text: str, commands: re.Pattern[str]) -> str:
    r"""Return a text without some commands, such as ``\boxed{``, and the braces that close them.

    The pattern matches these up to their opening brace, all other braces, and escaped characters where they count.
    """
    kept: list[str] = []
    opened: list[bool] = []
    end = 0
    for match in commands.finditer(text):
        drops = len(match[0]) > 2
        if drops or match[0] == "{":
            opened.append(drops)
        elif match[0] == "}" and opened:
            drops = opened.pop()
        if drops:
            kept.append(text[end : match.start()])
            end = match.end()
    return "".join([*kept, text[end:]])


def _respelt(text: str, words: bool) -> str:
    # Single spaces from here on, so that no pattern below has a run of them to try in every way.
    plain = " ".join(text.split())
    depths = accumulate((letter in "([{") - (letter in ")]}") for letter in plain)
    if len(plain) > 2 * LONGEST_ANSWER or max(depths, default=0) > DEEPEST:
        return ""
    plain = spelt_number(plain) if words else multiplied(plain)
    plain = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), plain)
    for pattern, replacement in _SPELLINGS:
        plain = pattern.sub(replacement, plain)
    plain = _commas(plain)
    for pattern, replacement in _SPACING:
        plain = pattern.sub(replacement, plain)
    plain = plain.strip().rstrip(".,;: \\").strip()
    while (braced := _BRACED.fullmatch(plain)) is not None:
        plain = braced[1].strip()
    return _numeral(plain) if _NUMERAL.fullmatch(plain) else plain


def _numeral(text: str) -> str:
    """Return a plain number without plus sign, leading and trailing zeros."""
    sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-")
    whole, _, places = digits.partition(".")
    whole, places = whole.lstrip("0") or "0", places.rstrip("0")
    number = f"{whole}.{places}" if places else whole
    return number if number == "0" else sign + number


def _commas(text: str) -> str:
    """Write the commas of lists and the commas of thousands apart.

    Between thousands a comma has no space behind it and groups of three digits around it. Outside brackets it is kept
    as it is, since another reader may take it for a list; within brackets, where a list is meant (``(100,200)``), it is
    a separator, unless the separators there have spaces (``(1,000, 2)``); within braces of a command it goes.
    """
    thousands = {place for number in _THOUSANDS.finditer(text) for place in range(*number.span())}
    spaced = re.search(r",\s", text) is not None
    pieces: list[str] = []
    brackets: list[str] = []
    for place, letter in enumerate(text):
        if letter in "([" or (letter == "{" and text[place - 1 : place] == "\\"):
            brackets.append("(")
        elif letter == "{":
            brackets.append("{")
        elif letter in ")]}" and brackets:
            brackets.pop()
        if letter != ",":
            if letter != " " or not pieces or pieces[-1] not in (",", ", "):
                pieces.append(letter)
        elif not brackets:
            pieces.append("," if place in thousands else ", ")
        elif place not in thousands or not (spaced or brackets[-1] == "{"):
            pieces.append(",")
    return "".join(pieces)


def _repeating(number: re.Match[str]) -> str:
    r"""Return a decimal that repeats as a fraction: 0.\overline{27} is 3/11."""
    whole, places, period = number.groups()
    top = int(whole + places + period) - int("0" + whole + places)
    value = Fraction(top, 10 ** len(places) * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed_number(number: re.Match[str]) -> str:
    r"""Return a mixed number as one fraction: 2\frac{1}{2} is 5/2, as school books write it."""
    whole, top, bottom = number.groups()
    return rf"\frac{{{int(whole) * int(bottom) + int(top)}}}{{{bottom}}}"


_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_BRACED = re.compile(r"(?<!\\)\{([^{}]*)\}")
_NUMERAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?-?\d\}?)?"
_COMMAND = re.compile(r"\\\\|\\([a-zA-Z]+)")
_COMMANDS = {
    name: spelling
    for spelling, names in {
        r"\frac": "dfrac tfrac cfrac", r"\binom": "dbinom tbinom", "<": "lt", ">": "gt", r"\le ": "leq leqslant",
        r"\ge ": "geq geqslant", r"\ne ": "neq", r"\emptyset": "varnothing O", "|": "vert lvert rvert",
        "(": "langle", ")": "rangle", "[": "lbrack lparen", "]": "rbrack rparen", r"\{": "lbrace lBrace",
        r"\}": "rbrace rBrace", " ": "quad qquad thinspace medspace",
        "": "displaystyle textstyle limits pounds textdollar",
    }.items()
    for name in names.split()
}  # fmt: skip
"""Commands that mean the same, or nothing; their names stand for themselves wherever they are."""
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[\w)}])\*\*(?=[\w(-])", "^"),  # a power of a programmer; the rest is Markdown
        (r"\*\*|`|\\[$]|(?<!\\)\$|(?<!\\)\\[()\[\]]|[€£¥]", ""),
        (r"\\text\s*\{\s*\}|\\(?:text)?color\s*\{[a-zA-Z]*\}", ""),
        (r"\{\.\}", "."),
        (r"¢", r"\\text{ cents}"),
        (r"(?<!\w)__(?=\S)|(?<=\S)__(?!\w)", ""),  # Markdown
        (r"(?<![\w.'])\d{1,3}(?:'\d{3})+(?![\w'])", lambda found: found[0].replace("'", "")),
        (r"\\\\\s*\[[^\[\]]*\]", r"\\\\"),  # the space between the rows of a matrix
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r",\s*\\!\s*(?=\d{3})|\{,\}\s?(?=\d{3})", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ]|~", " "),  # not the end of a matrix's row
        (r"\\h?phantom\s*(?:\{[^{}]*\}|.)", ""),
        (r"\\(?:textnormal|textbf|textit|textrm|textsf|textup|mathrm|mathbf|mathit|mathsf|bf|rm|operatorname\*?|mbox|underline)\s*\{",
         r"\\text{"),
        (r"\\text\{\s*([-\d.,/ ]+?)\s*\}", r"\1"),
        (r"\\text\{\s*(-?[\d.,/]*\d)\s+([a-zA-Z][a-zA-Z .]*)\}", r"\1\\text{\2}"),
        (r"^\s*\\text\{\s*(?:negative|minus)\s*\}\s*(?=[\d\\.])", "-"),
        (r"^\s*\\text\{[^{}]*(?::|\bis|=)\s*\}\s*", ""),
        (r"^\s*(?:\\approx|≈|\\sim(?![a-z])|(?:approximately|about|roughly|around)(?=\s*[-\d\\.]))\s*", ""),
        (r"(?<=[\d}])\s*\((?:since|because|i\.e\.|rounded|approximately)\b[^()]*\)\s*$", ""),
        (r"[(\[]?\s*\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{pmatrix}"),
        (r"\\end\{array\}\s*[)\]]?", r"\\end{pmatrix}"),
        (r"\\begin\{(?:small)?[bBvp]?matrix\*?\}", r"\\begin{pmatrix}"),
        (r"\\end\{(?:small)?[bBvp]?matrix\*?\}", r"\\end{pmatrix}"),
        (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])(pi|theta|sqrt|arcsin|arccos|arctan|sin|cos|tan|ln|log)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![a-zA-Z\\])(?:infinity|oo)(?![a-zA-Z])", r"\\infty "),
        (r"^\s*(?:USD|US|EUR|GBP|Rs\.?)\s*(?=[\d.])", ""),
        (r"(?<![a-zA-Z])([apAP])\.\s?[mM]\b\.?", r"\1m"),
        (r"\\mathbb\s*(?:\{R\}|R)|^\s*(?:\\text\{)?\s*all real(?:s| numbers)\s*\}?\s*$", r"(-\\infty,\\infty)"),
        (r"^\s*(?:negative|minus)\s+(?=[\d\\.])", "-"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d|\s[a-zA-Z]|\\pi)\s*(\d|[a-zA-Z]|\\pi)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d|[a-zA-Z]|\\pi)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*\{([^{}]*)\}\s*([\da-zA-Z]|\\pi)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        (r"\{\s*([^{}\\]{1,40}?)\s*\\choose\s*([^{}\\]{1,40}?)\s*\}", r"\\binom{\1}{\2}"),
        (r"^\s*(\w{1,40})\s*\\choose\s*(\w{1,40})\s*$", r"\\binom{\1}{\2}"),
        (r"\\[dtc]?frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
        (r"(?<=\d)\s*\^\s*(?:\\text\s*\{(?:st|nd|rd|th)\}|\{\s*\\text\s*\{(?:st|nd|rd|th)\}\s*\})", ""),
        (r"(?<![\w.])(\d{0,99})\.(\d{0,99})\\(?:overline|bar|dot)\s*\{(\d{1,99})\}", _repeating),
        (r"\\sqrt\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+)", r"\\sqrt{\1}"),
        (r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,/])", lambda found: found[1].replace(" ", "")),
        (r"(?<![\w}^.,])(\d{1,100})\s*\\frac\{(\d{1,100})\}\{(\d{1,100})\}", _mixed_number),
        (r"(?<![\w}^.,/])(\d{1,100})\s+(\d{1,100})/(\d{1,100})(?!\d)", _mixed_number),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d) x (?=\d)", r"\\times "),
        (r"(?<=\d)\^(-\d{1,3}|\d{2,3})(?![\d.])", r"^{\1}"),  # nobody writes 10^23 for 10^2 3
        (r"(?<=\d)\^\((-?\d{1,3})\)", r"^{\1}"),
        (r"(?<![\w\\}])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"(?<=\^)\{\+(\d)", r"{\1"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\\{\s*\\\}", r"\\emptyset"),
        (rf"({_TRIG})\s*\(?\s*(\d+(?:\.\d+)?)\s*\^\s*(?:\{{\s*\\circ\s*\}}|\\circ)\s*\)?", r"\1(\\frac{\2\\pi}{180})"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\(?:degree|degrees)(?![a-zA-Z])", ""),
        (r"\s*,?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*", ", "),
        (r"(?<=[\w)}\]])\s*,?\s+(?:and|or)\s+", ", "),
        (r";", ", "),
        (r"\\cdot(?![a-zA-Z])|\*", r"\\cdot "),
    )
]  # fmt: skip
_SPACING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!,)\s*([=+\-*/^_(){}\[\]|<>])\s*", r"\1"),
        (r"(?<!,)\s+(?=\\)|(?<=[\d)}\]])\s+(?=[a-zA-Z](?![a-zA-Z]))", ""),
        (r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1"),
        (r"\s+,", ","),
        (r"\^\{(\w)\}(?!\d)", r"^\1"),
        (r"_\{(\w)\}(?!\d)", r"_\1"),
        (r"\s+", " "),
    )
]
