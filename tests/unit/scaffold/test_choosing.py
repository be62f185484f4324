"""What `make topic` picks of the samples' fields, and what it says if it cannot choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.streams import At, FromHeader
from scaffold.choosing import MAX_PICKED, Choice, Wishes
from scaffold.errors import Refused
from scaffold.samples import from_file
from tests.unit.scaffold.samples import TYPED, chosen, of, of_webhooks, orders


def fields(choice: Choice, kind: str | None = None) -> list[str]:
    (found,) = [contract for contract in choice.contracts if contract.kind == kind]
    return [each.name for each in found.fields]


def test_each_type_of_message_has_a_contract_and_all_share_id_and_key(tmp_path: Path):
    choice = chosen(of_webhooks(tmp_path), TYPED)
    assert [contract.kind for contract in choice.contracts] == ["push", "issues", "pull_request", "star"]
    assert choice.by == FromHeader("X-Hub-Event")
    assert (choice.id_field, choice.key_field, choice.is_own) == ("hub_delivery", "repository_full_name", False)
    for contract in choice.contracts:
        assert [each.source for each in contract.fields[:2]] == [
            FromHeader("X-Hub-Delivery"),
            At("repository.full_name"),
        ]
        assert len(contract.fields) == MAX_PICKED + 2
        assert all(each.is_required for each in contract.fields)
        assert not any("url" in each.name for each in contract.fields)


def test_a_field_has_one_name_and_one_type_in_all_contracts(tmp_path: Path):
    choice = chosen(of_webhooks(tmp_path), TYPED)
    seen: dict[str, set] = {}
    for contract in choice.contracts:
        for each in contract.fields:
            seen.setdefault(each.name, set()).add((str(each.source), each.guess.name))
    assert all(len(kinds) == 1 for kinds in seen.values())


def test_the_fields_that_are_named_are_picked_also_if_only_some_samples_have_them(tmp_path: Path):
    wishes = Wishes(TYPED.id, None, TYPED.kind, ("sender.login", "issue.score", "header:User-Agent"))
    choice = chosen(of_webhooks(tmp_path), wishes)
    assert fields(choice, "push") == ["hub_delivery", "repository_full_name", "sender_login", "user_agent"]
    (issues,) = [contract for contract in choice.contracts if contract.kind == "issues"]
    score = issues.fields[-1]
    assert (score.name, score.guess.name, score.is_required) == ("issue_score", "float", False)


def test_flat_messages_with_a_version_have_a_plain_contract():
    choice = chosen(orders())
    assert choice.is_own
    assert (choice.id_field, choice.key_field, choice.event_time) == ("order_id", "order_id", "placed_at")
    assert fields(choice) == ["order_id", "placed_at", "amount_cents", "discount", "is_gift", "note"]
    assert [each.is_required for each in choice.contracts[0].fields] == [True] * 5 + [False]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: {**document, "lines": []},
        lambda document: {name: value for name, value in document.items() if name != "version"},
        lambda document: {**document, "version": str(document["version"])},
        lambda document: {**document, "eventTime": document["placed_at"]},
    ],
)
def test_other_messages_have_a_foreign_contract(change):
    choice = chosen(of(*(change(sample.document) for sample in orders())))
    assert not choice.is_own
    assert choice.id_field == "order_id"


def test_the_key_is_the_field_that_has_the_values_of_the_samples_keys():
    samples = of({"id": "a", "n": 1, "shop": "x"}, {"id": "b", "n": 2, "shop": "x"}, key="x")
    choice = chosen(samples)
    assert choice.key_field == "shop"
    assert "key: shop, which is the key of all 2 samples; KEY= names another" in choice.notes


def test_a_topic_whose_keys_nobody_knows_has_none():
    assert chosen(of({"id": "a", "n": {}}, {"id": "b", "n": {}})).key_field is None


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([{"order_id": n, "user": {"id": n}} for n in range(3)], "order_id"),
        ([{"number": n, "uuid": f"u{n}"} for n in range(3)], "uuid"),
        ([{"user": {"id": n}, "id": 1} for n in range(3)], "user_id"),
    ],
)
def test_the_id_is_a_field_that_differs_in_all_samples_nearest_to_the_top(documents, expected):
    assert chosen(of(*documents)).id_field == expected


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (Wishes(id="order"), "ID=order: no sample has this field; did you mean order_id"),
        (Wishes(id="header:x"), "ID=header:x: no sample has this header; they have: none. In a file, write a line"),
        (Wishes(id="is_gift"), "ID=is_gift: it is no text and no whole number in sample 1"),
        (Wishes(id="version"), "ID=version: samples 1 and 2 have the same id and other content"),
        (Wishes(key="note"), "KEY=note: only 4 of 12 samples have it; name a field that all have"),
        (Wishes(key="placed_at"), "KEY=placed_at: it is a UtcTime; name a text or a whole number"),
        (Wishes(kind="amount_cents"), "TYPE=amount_cents: in no sample is it a text of letters"),
        (Wishes(fields=("order_id", "nothing")), "FIELDS=nothing: no sample has this field"),
    ],
)
def test_a_wish_that_the_samples_do_not_fulfil_is_refused_with_what_to_do(wishes: Wishes, said: str):
    with pytest.raises(Refused) as refused:
        chosen(orders(), wishes)
    assert str(refused.value).startswith(said)


def test_samples_without_an_id_are_refused():
    with pytest.raises(
        Refused, match="no field is named like an id and is different in all 2 samples: name one with ID="
    ):
        chosen(of({"n": 1}, {"n": 2}))


def test_a_list_is_not_picked():
    samples = of({"id": 1, "labels": []}, {"id": 2, "labels": ["a"]})
    with pytest.raises(Refused, match="FIELDS=labels: found list in the samples"):
        chosen(samples, Wishes(fields=("labels",)))
    assert fields(chosen(samples)) == ["id"]


def test_a_field_whose_values_have_several_types_is_not_picked():
    assert fields(chosen(of({"id": 1, "at": 5}, {"id": 2, "at": "x"}))) == ["id"]


def test_names_that_a_contract_cannot_have_are_changed():
    choice = chosen(of(*({"id": n, "event_id": 5, "copy": "a", "class": "b", "a": {"B-c": "d"}} for n in range(2))))
    assert fields(choice) == ["id", "event_id_value", "copy_value", "class_value", "a_b_c"]


def test_samples_that_are_not_json_are_left_out_and_infinite_numbers_are_not_picked(tmp_path: Path):
    file = tmp_path / "odd.jsonl"
    file.write_text('{"id": "a", "x": NaN}\n{"id": "b", "x": 1e999}\n{"id": "c", "x": -Infinity}\n{"id": "d"}\n')
    samples, others = from_file(file)
    assert ([sample.document["id"] for sample in samples], others) == (["b", "d"], 2)
    assert fields(chosen(samples)) == ["id"]


def typed(**values: list) -> list:
    """Samples of the types "a" and "b": two of each, with a value of each list."""
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return of(*({"id": f"e{n}", "type": "aabb"[n], **row} for n, row in enumerate(rows)))


def guesses(choice: Choice) -> dict[str, dict[str, tuple[str, dict[str, str]]]]:
    return {
        str(contract.kind): {each.name: (each.guess.name, each.guess.bounds) for each in contract.fields}
        for contract in choice.contracts
    }


def test_bounds_are_guessed_for_each_type_of_message():
    samples = typed(size=[3, 5, 7_000_000, 9], note=["x", "y", "z" * 400, "z"], share=[1, 1, 0.5, 0.5])
    choice = chosen(samples, Wishes(kind="type"))
    small, large = guesses(choice)["a"], guesses(choice)["b"]
    assert (small["size"], large["size"]) == (("int", {"ge": "0", "le": "10**4"}), ("int", {"ge": "0", "le": "10**10"}))
    assert (small["note"][1], large["note"][1]) == ({"max_length": "200"}, {"max_length": "4_000"})
    # One type in all contracts, because they share a table.
    assert small["share"][0] == large["share"][0] == "float"


def test_a_time_that_is_a_text_in_another_type_of_message_is_a_text_in_both():
    samples = typed(at=["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "soon", "later"])
    found = guesses(chosen(samples, Wishes(kind="type")))
    assert [found[kind]["at"][0] for kind in "ab"] == ["Line", "Line"]


def test_fields_that_all_types_have_alike_are_shared():
    choice = chosen(
        typed(n=[1, 2, 3, 40], size=[1, 2, 3, 4_000_000], some=["x", None, "x", "x"], own=["x", "x", None, None]),
        Wishes(kind="type"),
    )
    assert [(each.name, each.seen) for each in choice.shared] == [("id", (4, 4)), ("type", (4, 4)), ("n", (4, 4))]
    assert choice.shared[2].guess.note == "1 to 40"
    for contract in choice.contracts:
        assert all(each in contract.fields for each in choice.shared)


def test_a_contract_without_types_shares_nothing():
    assert chosen(orders()).shared == ()
