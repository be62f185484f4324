"""The id of a schema in a message is found where serializers write it, and nowhere else."""

import uuid

import pytest

from include.streams.formats import NotDecodable
from include.streams.formats.framing import SchemaRef, join, split

GUID = str(uuid.UUID(int=7))


@pytest.mark.parametrize("where", ["prefix", "header"])
@pytest.mark.parametrize("indexes", [(), (0,), (1,), (2, 0, 300)])
@pytest.mark.parametrize("guid", [None, GUID])
def test_what_is_joined_is_split_again(where, indexes, guid):
    value, headers = join(SchemaRef(258, guid, indexes), b"payload", where)
    found, payload = split(value, headers, has_indexes=bool(indexes))
    by_guid = guid is not None and where == "header"
    assert (found.guid, found.id) == ((GUID, None) if by_guid else (None, 258))
    assert (found.indexes, payload) == (indexes, b"payload")


def test_the_first_type_of_a_file_is_one_zero_byte():
    assert join(SchemaRef(1, None, (0,)), b"x", "prefix")[0] == b"\0\0\0\0\1\0x"


def test_the_header_of_apicurios_serializers_is_read():
    ref, payload = split(b"data", [("apicurio.value.contentId", (77).to_bytes(8, "big"))], has_indexes=False)
    assert (ref.id, payload) == (77, b"data")


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\0\0\1", b"{}", b"\1" + bytes(15), b"\2\0\0\0\1x"])
def test_a_value_without_an_id_is_named(value):
    with pytest.raises(NotDecodable) as caught:
        split(value, [], has_indexes=False)
    assert caught.value.reason == "no_schema_id"


@pytest.mark.parametrize("rest", [b"", b"\x80", b"\x42", b"\xff\xff\xff\xff\xff\x0f", b"\x01", b"\x04\x02"])
def test_damaged_numbers_of_a_type_are_not_decodable(rest):
    with pytest.raises(NotDecodable) as caught:
        split(b"\0\0\0\0\1" + rest, [], has_indexes=True)
    assert caught.value.reason == "not_decodable"
