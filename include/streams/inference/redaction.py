"""Prepares external text for a prompt, a log or an XCom: cleans, truncates, redacts and fences it.

Redaction by pattern is incomplete: it removes only text of known forms. The patterns prefer to remove too much. Data
that must never leave the company should not be given to a model.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

# Invisible characters can carry hidden instructions, or split a word so that no rule matches it. The category Cf
# contains the zero-width and bidirectional marks and the tags block (U+E0000). The following characters are not in it.
_INVISIBLE = frozenset(
    [
        *range(0xFE00, 0xFE10),  # variation selectors
        *range(0xE0100, 0xE01F0),  # more variation selectors
        0x034F,  # combining grapheme joiner
        *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers
        *(0x17B4, 0x17B5),  # Khmer vowels that are not drawn
        0x2800,  # braille without a dot
        *range(0x180B, 0x1810),  # Mongolian variation selectors
    ]
)
_REMOVED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_BREAKS = frozenset("\n\t\r\v\f\x85\u2028\u2029")


@dataclass(frozen=True)
class Cleaned:
    """Cleaned text.

    Attributes:
        text: The text without invisible characters.
        invisible: The number of removed characters.
        cut: Whether the text was truncated.
    """

    text: str
    invisible: int
    cut: bool


def clean(text: str, max_chars: int) -> Cleaned:
    """Remove control and invisible characters, normalize variants of letters (full-width, bold), and truncate.

    Line breaks become "\\n", at most two in a row. Any other sequence of white space becomes one space.

    Args:
        text: The text.
        max_chars: The longest result, in characters.
    """
    invisible = 0
    kept = []
    # Truncated first, to spend no time on the rest. Normalization can lengthen the text, so it is truncated again.
    for char in text[: 4 * max_chars]:
        if char in _BREAKS:
            kept.append("\n" if char != "\t" else " ")
        elif ord(char) in _INVISIBLE or unicodedata.category(char) in _REMOVED_CATEGORIES:
            invisible += 1
        else:
            kept.append(char)
    folded = unicodedata.normalize("NFKC", "".join(kept))
    lines = (" ".join(line.split()) for line in folded.split("\n"))
    whole = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return Cleaned(whole[:max_chars], invisible, len(text) > 4 * max_chars or len(whole) > max_chars)


_EMAIL = re.compile(
    r"[\w.+-]{1,64}\s?(?:@|\(at\)|\[at\])\s?[\w-]{1,63}(?:(?:\.|\s?(?:\(dot\)|\[dot\])\s?)[\w-]{1,63}){1,4}",
    re.IGNORECASE,
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)", re.IGNORECASE)
_DIGITS = re.compile(r"(?<![\w-])[+(]?[0-9](?:[ ().\-/]{0,2}[0-9]){6,24}(?!\w)")
_DATE = re.compile(r"(?:[0-9]{4}[-./][0-9]{1,2}[-./][0-9]{1,2}|[0-9]{1,2}[-./][0-9]{1,2}[-./][0-9]{2,4})(?![0-9])")

# Words after a number that are not the name of a street: "24 hours on Elm Street" is a duration.
_NO_NAME = (
    r"(?!(?:in|on|at|of|the|and|no|is|are|our|my|for|with|from|to|hours?|days?|weeks?|months?|minutes?|people|houses|"
    r"homes|families|times?|am|pm|percent|liters?|litres?)\b)"
)
_STREET = (
    r"(?:street|st|road|rd|avenue|ave|lane|ln|drive|dr|court|ct|boulevard|blvd|terrace|square|sq|close|crescent|"
    r"parkway|pkwy|highway|hwy)"
)
_ADDRESS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # 12b Old Mill Road, Apt 4
        rf"\b[0-9]{{1,5}}[a-z]?,? (?:{_NO_NAME}[\w'.-]+ ){{1,3}}{_STREET}\b\.?"
        r"(?:,? (?:apt|apartment|flat|unit|#) ?\w{1,5})?",
        # Lindenstraße 5, Am Alten Weg 12
        r"\b[\w-]*(?:straße|strasse|gasse|allee)\.? [0-9]{1,4}[a-z]?\b",
        r"\b[\w-]{2,}(?:str\.|weg|platz) [0-9]{1,4}[a-z]?\b",
        # 4, rue de la Gare; Calle Mayor 7; Via Roma 3
        r"\b[0-9]{1,4},? (?:bis,? )?(?:rue|avenue|boulevard|chemin|impasse|quai) (?:[\w'\u2019-]+ ?){1,4}",
        r"\b(?:calle|avenida|avda\.?|plaza|paseo|via|viale|piazza|rua) (?:[\w'\u2019-]+,? ){1,4}?[0-9]{1,4}\b",
        r"\bp\.? ?o\.? ?box [0-9]{1,6}\b",
    )
)


@dataclass(frozen=True)
class Redacted:
    """Text with placeholders such as [email], and the number of placeholders of each kind."""

    text: str
    counts: dict[str, int]


def redact(text: str, known: Iterable[str | None] = ()) -> Redacted:
    """Replace e-mail addresses, bank accounts, card and phone numbers, and address lines by [email], [iban], ...

    Args:
        text: The text.
        known: Personal data from other fields of the caller (a name, an address). They are found with any case and
            spacing and become [known]. Values with fewer than 4 characters are ignored.
    """
    counts: dict[str, int] = {}

    def put(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return f"[{kind}]"

    def number(match: re.Match[str]) -> str:
        matched = match.group()
        digits = [int(char) for char in matched if char.isdigit()]
        if 13 <= len(digits) <= 19 and _luhn(digits):
            return put("card")
        if _DATE.match(matched) and len(digits) <= 12:  # a date, perhaps with the hour and minute
            return matched
        return put("phone") if len(digits) <= 15 else put("number")

    def account(match: re.Match[str]) -> str:
        # The pattern may include words after the account: remove them one by one.
        words = match.group().split(" ")
        for end in range(len(words), 0, -1):
            if _is_iban("".join(words[:end])):
                return " ".join([put("iban"), *words[end:]])
        return match.group()

    for value in known:
        words = (value or "").split()
        if sum(map(len, words)) >= 4:  # a shorter value would occur in other words
            pattern = r"[\s,]+".join(re.escape(word.strip(",")) for word in words if word.strip(","))
            text = re.sub(pattern, lambda _: put("known"), text, flags=re.IGNORECASE)
    text = _EMAIL.sub(lambda _: put("email"), text)
    text = _IBAN.sub(account, text)
    text = _DIGITS.sub(number, text)
    for address in _ADDRESS:
        text = address.sub(lambda _: put("address"), text)
    return Redacted(text, counts)


def fence(text: str) -> str:
    """Enclose the text in two random marks, so that its author cannot fake the end of the text."""
    mark = f"untrusted-{secrets.token_hex(8)}"
    return f"<{mark}>\n{text}\n</{mark}>"


def _luhn(digits: list[int]) -> bool:
    doubled = [
        digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
        for place, digit in enumerate(reversed(digits))
    ]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """Whether the check digits are valid (ISO 13616): rearranged and converted to digits, an IBAN is 1 modulo 97."""
    compact = text.replace("-", "").upper()
    if not (15 <= len(compact) <= 34 and compact.isascii() and compact.isalnum()):
        return False
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1
