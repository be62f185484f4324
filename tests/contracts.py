"""Topics whose contract changes during a test, as it does with a deploy."""

from __future__ import annotations

from functools import cached_property

from include.streams import Contract, ContractUnion, Topic


def change_contract(topic: Topic, contract: type[Contract] | ContractUnion) -> None:
    """Give a topic another contract, and forget what the topic has derived from the old contract."""
    object.__setattr__(topic, "contract", contract)
    for name in [name for name in vars(topic) if isinstance(getattr(type(topic), name, None), cached_property)]:
        del vars(topic)[name]
