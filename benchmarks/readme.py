"""The rows of the README's comparison that `make bench-events` measures, ready to be pasted."""

from collections.abc import Mapping
from typing import Any

HEADER = ("", "stock trigger", "shared stream", "this project", "plain consumer, no Airflow")


def table(result: Mapping[str, Any]) -> str:
    """As Markdown; `result` is the command's JSON object."""
    rates, seconds = result["burst_per_second"], result["single_p50_seconds"]
    size = f"{result['burst_size']:,}"
    rows = [
        HEADER,
        ("---",) * len(HEADER),
        (
            f"messages a second in a burst of {size}",
            _number(rates.get("stock")),
            _number(rates.get("shared stream")),
            f"{_number(rates.get('ours'))}; {_example(', outbox included,', _number(rates.get('alerts')))}"
            f"with a Dag run for each message {_number(rates.get('per message'))} "
            f"({_number(rates.get('floor'))} is what Airflow did, triggered through its REST API)",
            _number(rates.get("plain")),
        ),
    ]
    if "sustained_per_s" in result:
        rows.append(
            (
                f"{result['sustained_messages']:,} at once, a second",
                "",
                "",
                f"`raise_alerts` {_number(result['sustained_per_s'])}; with the webhook's receiver "
                f"{_number(result['sustained_with_receiver_per_s'])}",
                _number(result["sustained_plain_consumer_per_s"]),
            )
        )
    rows += [
        (
            "one message, from the broker to its effect, median",
            _seconds(seconds.get("stock")),
            _seconds(seconds.get("shared stream")),
            f"{_seconds(seconds.get('ours'))}; {_example('', _seconds(seconds.get('alerts')))}with a Dag run for "
            f"each message {_seconds(seconds.get('per message'))} ({_seconds(seconds.get('floor'))} is what a Dag run "
            "of one task takes)",
            _seconds(seconds.get("plain")),
        ),
        (
            "messages that arrive together",
            *(
                f"{result[name + '_joined']:,} joined into one run or left for the next, {result[name + '_lost']:,} "
                "seen by no run"
                for name in ("stock", "shared_stream")
            ),
            "each handled once",
            "each handled once",
        ),
    ]
    variants = [
        f"{lane}: {_seconds(seconds.get(lane))}, {_number(rates.get(lane))} a second in a burst"
        for lane in seconds
        if ", " in lane
    ]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", *variants, ""])


def _example(what: str, figure: str) -> str:
    """The figure of the example's own Dag, if it was measured."""
    return f"`raise_alerts`{what} {figure}; " if figure else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
