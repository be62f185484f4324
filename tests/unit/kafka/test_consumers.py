"""A function that a declaration names can be called, or the error says what to correct."""

from __future__ import annotations

from datetime import timedelta

import pytest

from include.streams import Consumer, Topic
from include.streams.kafka.consumers import FunctionUnusable, load_function
from tests.unit.contracts.orders import OrderV1

HERE = "tests.unit.kafka.test_consumers"
ORDERS = Topic("orders", OrderV1, key="order_id", partitions=1, retention=timedelta(days=7))
NUMBER = 7


def effect(connection, message): ...


def prepared_effect(connection, message, prepared): ...


def prepare(message): ...


class Callable:
    def __call__(self, connection, message): ...


instance = Callable()


def consumer(name: str, prepare: str | None = None) -> Consumer:
    return Consumer(name="book", topics=(ORDERS,), effect=name, prepare=prepare)


@pytest.mark.parametrize("name", [f"{HERE}:effect", f"{HERE}:instance", "builtins:print"])
def test_a_function_that_takes_the_arguments_is_loaded(name):
    assert callable(consumer(name).load_effect())


def test_an_effect_with_a_prepared_value_has_a_third_argument():
    both = consumer(f"{HERE}:prepared_effect", f"{HERE}:prepare")
    assert (both.load_effect(), both.load_prepare()) == (prepared_effect, prepare)
    assert consumer(f"{HERE}:effect").load_prepare() is None


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (f"{HERE}:efect", r"cannot be imported \(AttributeError: .*has no attribute 'efect'\); correct the name"),
        ("include.shop.effects:book", r"cannot be imported \(ModuleNotFoundError: No module named 'include.shop'\)"),
        ("no name at all", r"cannot be imported \(ValueError"),
        (f"{HERE}:NUMBER", "is a int, and must be a function"),
        (f"{HERE}:prepare", r"takes \(message\), and is called with \(connection, message\); correct its parameters"),
        (
            f"{HERE}:prepared_effect",
            r"takes \(connection, message, prepared\), and is called with \(connection, message\)",
        ),
    ],
)
def test_an_unusable_effect_is_refused_with_its_name_and_the_reason(name, error):
    with pytest.raises(FunctionUnusable, match=rf"^consumer book: its effect '{name}' {error}"):
        consumer(name).load_effect()


def test_an_unusable_function_for_preparing_is_named_as_such():
    with pytest.raises(FunctionUnusable, match=r"consumer book: its function for preparing .* cannot be imported"):
        consumer(f"{HERE}:effect", f"{HERE}:none").load_prepare()


@pytest.mark.parametrize("line", ["import no.such.module", "1 + 'a'", "print(name)", "def f(:", "None.x"])
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(line, tmp_path, monkeypatch):
    (tmp_path / "faulty_module.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FunctionUnusable, match=r"'faulty_module:f' cannot be imported \(\w+Error"):
        load_function("faulty_module:f", "consumer book: its effect")


def test_an_outage_during_an_import_is_not_reported_as_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "away_module.py").write_text("raise ConnectionError('away')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConnectionError):
        load_function("away_module:f", "consumer book: its effect")
