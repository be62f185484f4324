"""Great Expectations, in memory only: no project folder, no Data Docs, no progress bars.

Its import takes two seconds and 200 MB, so it is imported only inside functions.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from include.streams.validators.rules import Rule

if TYPE_CHECKING:
    import pandas


class GreatExpectations:
    """A context of Great Expectations that exists only as long as this object."""

    def __init__(self) -> None:
        # Before the import, because the import alone writes about three hundred lines to a task's log.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        import great_expectations
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        configuration = DataContextConfig(
            # The default creates a folder for Data Docs, which is not needed.
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False),
        )
        context = great_expectations.get_context(mode="ephemeral", project_config=configuration)
        self._source: Any = context.data_sources.add_pandas("run")

    def validate(self, name: str, frame: pandas.DataFrame, expectations: Sequence[Any], examples: int) -> list[Any]:
        """Check a data frame.

        Args:
            name: A name for the data, unique for this object.
            frame: The rows.
            expectations: Expectations of Great Expectations.
            examples: How many values that break an expectation are listed, by their index in the frame.

        Returns:
            The results of Great Expectations, in the order of the expectations.
        """
        from great_expectations import ExpectationSuite

        asset = self._source.add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
        suite = ExpectationSuite(name)
        for number, declared in enumerate(expectations):
            # Numbered, because Great Expectations validates in another order.
            declared.meta = {"number": number}
            suite.add_expectation(declared)
        # COMPLETE lists every value: for a rule that each of a million rows breaks, this is a copy of the column.
        form = {"result_format": "COMPLETE" if examples else "BASIC", "partial_unexpected_count": examples}
        with warnings.catch_warnings():
            # pandas warns about a pattern with groups, because it expects a call that extracts them.
            warnings.filterwarnings("ignore", "This pattern is interpreted as a regular expression")
            validated = batch.validate(suite, result_format=form)
        return sorted(validated.results, key=lambda result: result.expectation_config.meta["number"])


def expectation(rule: Rule) -> Any:
    """The expectation of Great Expectations for a rule about a column."""
    import great_expectations.expectations as expectations

    mostly = {} if rule.mostly is None else {"mostly": rule.mostly}
    kind = getattr(expectations, rule.expectation)
    return kind(column=rule.column, severity=rule.severity.value, **rule.arguments, **mostly)
