"""Great Expectations, kept in memory: no project folder, no Data Docs, no progress bars.

Importing Great Expectations takes two seconds and 200 MB, so it is done in the calls.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from include.validators.rules import Measure, Rule

if TYPE_CHECKING:
    import pandas


class GreatExpectations:
    """A context of its own, forgotten with this object."""

    def __init__(self) -> None:
        # Before the import, which alone writes some three hundred lines into a task's log.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        import great_expectations
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        configuration = DataContextConfig(
            # Its own default makes a folder for Data Docs that nobody asked for.
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False),
        )
        context = great_expectations.get_context(mode="ephemeral", project_config=configuration)
        self._source: Any = context.data_sources.add_pandas("run")

    def validate(self, name: str, frame: pandas.DataFrame, expectations: Sequence[Any], examples: int) -> list[Any]:
        """The results of Great Expectations, in the order of the expectations.

        examples: how many values that break an expectation are named, by their place in the frame.
        """
        from great_expectations import ExpectationSuite

        asset = self._source.add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
        suite = ExpectationSuite(name)
        for number, one in enumerate(expectations):
            # It validates in an order of its own.
            one.meta = {"number": number}
            suite.add_expectation(one)
        # COMPLETE names every value: for a rule that each of a million rows breaks, a copy of the column.
        form = {"result_format": "COMPLETE" if examples else "BASIC", "partial_unexpected_count": examples}
        with warnings.catch_warnings():
            # A pattern with groups; pandas would rather extract them.
            warnings.filterwarnings("ignore", "This pattern is interpreted as a regular expression")
            found = batch.validate(suite, result_format=form)
        return sorted(found.results, key=lambda result: result.expectation_config.meta["number"])


def expectation(rule: Rule) -> Any:
    """A rule about a column as what Great Expectations calls an expectation."""
    import great_expectations.expectations as expectations

    mostly = {} if rule.mostly is None else {"mostly": rule.mostly}
    kind = getattr(expectations, rule.expectation)
    return kind(column=rule.column, severity=rule.severity.value, **rule.arguments, **mostly)


def limit(measure: Measure, low: float | None, high: float | None) -> Any:
    """The bounds of a measure, whose value is the one row of a column of its name."""
    import great_expectations.expectations as expectations

    kind: Any = expectations.ExpectColumnValuesToBeBetween
    return kind(column=measure.name, min_value=low, max_value=high, severity=measure.severity.value)
