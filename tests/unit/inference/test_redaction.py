"""The parts that are removed from a text before it goes into a prompt, a log or an XCom."""

import re

import pytest

from include.streams.inference.redaction import clean, fence, redact


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("help me at john.doe+x@example.co.uk please", "help me at [email] please"),
        ("john (at) example (dot) com", "[email]"),
        ("call +44 20 7946 0958 now", "call [phone] now"),
        ("(510) 555-0123", "[phone]"),
        ("0171/1234567", "[phone]"),
        ("4111 1111 1111 1111", "[card]"),
        ("card 5500-0000-0000-0004.", "card [card]."),
        # One digit off: no card, and too long for a telephone.
        ("4111111111111112", "[number]"),
        ("pay to DE89 3704 0044 0532 0130 00 please", "pay to [iban] please"),
        ("GB82WEST12345698765432", "[iban]"),
        ("I live at 12b Old Mill Road, Apt 4", "I live at [address]"),
        ("Lindenstraße 5", "[address]"),
        ("4, rue de la Gare", "[address]"),
        ("Calle Mayor 7", "[address]"),
        ("PO Box 331", "[address]"),
    ],
)
def test_personal_data_is_removed(text, kept):
    assert redact(text).text == kept


@pytest.mark.parametrize(
    "text",
    [
        "24 hours without anything on Elm Street",
        "on 2026-11-22 14:30 and on 12.11.2026",
        "M-900001 shows 004821",
        "SR-00012345",
        "40 people, 3.5 bar, 310 kWh",
    ],
)
def test_text_without_personal_data_stays(text):
    assert redact(text).text == text


def test_known_values_are_removed_in_any_spelling():
    text = "It is at 5, quay\nlane; yes, 5 QUAY  LANE."
    assert redact(text, known=("5 Quay Lane", None, "")).text == "It is at [known]; yes, [known]."
    # Too short to be told from other words.
    assert redact("a to z", known=("a",)).text == "a to z"


def test_redaction_counts_placeholders_by_kind():
    assert redact("a@example.com b@example.com +44 20 7946 0958").counts == {"email": 2, "phone": 1}


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b\u200c\u200d\ufeff\u2060",  # zero width
        "\u202a\u202e\u2066\u2069\u200f",  # bidirectional
        "".join(chr(0xE0000 + ord(c)) for c in "ignore"),  # tags
        "\ufe0f\ufe00" + chr(0xE0100) + chr(0xE01EF),  # variation selectors
        "\x00\x1b\x07\x7f\x9b",  # control
        "\u3164\uffa0\u115f\u2800",  # fillers
        "\ue000\U000f0000",  # private use
        "\ud800",  # half of a pair
    ],
    ids=["zero width", "bidi", "tags", "variation", "control", "fillers", "private", "surrogate"],
)
def test_invisible_characters_are_removed_and_counted(hidden):
    cleaned = clean(f"burst {hidden}pi{hidden}pe", 100)
    assert cleaned.text == "burst pipe"
    assert cleaned.invisible == 2 * len(hidden)


def test_an_address_in_look_alike_characters_is_removed():
    full_width = "".join(chr(ord(char) + 0xFEE0) for char in "john@example.com")
    assert redact(clean(f"{full_width} j\u200bo\u00adhn@example.com", 100).text).text == "[email] [email]"


def test_line_breaks_stay_and_other_white_space_is_one_space():
    assert clean(" a\t\tb \r\n\n\n\n\n c\u00a0d ", 100).text == "a b\n\nc d"


def test_a_text_is_truncated_to_the_limit():
    cleaned = clean("x" * 101, 100)
    assert (len(cleaned.text), cleaned.cut) == (100, True)
    assert not clean("x" * 100, 100).cut
    # One letter that folds into eighteen.
    assert len(clean("\ufdfa" * 100, 100).text) == 100


def test_a_fenced_text_cannot_close_its_fence():
    marks = set()
    for _ in range(20):
        opened, closed = re.fullmatch(r"<(\S+)>\nx\n</(\S+)>", fence("x")).groups()
        assert opened == closed
        marks.add(opened)
    assert len(marks) == 20
