"""Training of the leak model.

The model is trained on earlier nights than those on which it is judged. The judged model itself is used; it is not
trained again on all nights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from include.streams.models.gate import Gate, Scores
from include.streams.models.training import Outcome, train
from include.water.leaks import features as features_module
from include.water.leaks import model as model_module
from include.water.leaks.features import FEATURES, FLOWS, features
from include.water.leaks.frames import DataFrame, Series
from include.water.leaks.model import ALLOWED_TYPES, SEED, model_score, new_model
from include.water.leaks.scoring import FALSE_ALARMS_PER_YEAR, LeakPeriod, Result, evaluate, threshold_for

if TYPE_CHECKING:
    from include.streams.models.store import ModelStore
    from include.water.leaks.nights import Nights

log = logging.getLogger(__name__)

# The last nights are held out. The champion was trained on earlier nights, so it has not seen them either.
HELD_OUT_SHARE = 0.4
# The newest nights are not used: no crew has confirmed their leaks yet, so nights with a leak would count as nights
# without a leak.
UNCONFIRMED_NIGHTS = 4
MIN_HELD_OUT_LEAKS = 3
MIN_TRAINING_LEAKS = 3
# New nights before the next training: fewer would hardly change the model.
TRAIN_EVERY_NIGHTS = 7
BLOCKS = 5  # of the training nights, for choosing the threshold on nights that a model has not seen
# A district's score depends on few leaks: if one of three is found three nights later, it is 0.14 lower. And in a short
# history of a few weeks, two false alarms are already 6.5 per year.
GATE = Gate(margin=0.02, max_group_loss=0.34, limits={"false_alarms": 4 * FALSE_ALARMS_PER_YEAR})
MIN_GROUP_LEAKS = 2
CONTRACT = "water.district_nights 1, water.district_hours 1"


class NotEnough(Exception):
    """Too few nights or confirmed leaks to train and to judge: the model in use stays."""


class LeakAttempt:
    """A TrainingRun (`include.streams.models.training`) with nights and confirmed leaks.

    Args:
        nights: The complete nights.
        leaks: The confirmed leaks.

    Raises:
        NotEnough: There are too few nights or leaks.
    """

    contract = CONTRACT

    def __init__(self, nights: Nights, leaks: Sequence[LeakPeriod]) -> None:
        import pandas as pd

        rows: DataFrame = nights.rows
        if rows.empty:
            raise NotEnough("no complete night yet")
        self._leaks = sorted(leaks)
        self.rows: DataFrame = pd.concat([rows, features(rows)], axis=1)
        known = self.rows["least_loss"].notna()
        first, last = rows["night"].min(), rows["night"].max()
        begin = last - (last - first) * HELD_OUT_SHARE
        known &= rows["night"] <= last - pd.Timedelta(days=UNCONFIRMED_NIGHTS)
        self.training: DataFrame = self.rows[known & (self.rows["night"] <= begin)]
        self.held_out: DataFrame = self.rows[known & (self.rows["night"] > begin)]
        learned = sum(_touches(leak, self.training) for leak in self._leaks)
        judged = sum(_starts_in(leak, self.held_out) for leak in self._leaks)
        if learned < MIN_TRAINING_LEAKS or judged < MIN_HELD_OUT_LEAKS:
            raise NotEnough(
                f"{learned} confirmed leaks ran in the nights to learn from and {judged} began in those to judge by; "
                f"{MIN_TRAINING_LEAKS} and {MIN_HELD_OUT_LEAKS} are needed"
            )
        self.label = last.date().isoformat()
        self.fingerprint = _fingerprint(rows, self._leaks)
        self.data: Mapping[str, Any] = {
            **nights.source,
            "nights": len(rows),
            "first_night": first.date().isoformat(),
            "last_night": self.label,
            "leaks_learned_from": learned,
            "leaks_judged_by": judged,
        }

    def fit(self) -> tuple[Any, Mapping[str, Any]]:
        import pandas as pd

        nights, leak = self.training, self._is_leak
        days = nights["night"].rank(method="dense")
        block = ((days - 1) * BLOCKS // days.max()).astype(int)
        score = pd.Series(float("nan"), index=nights.index)
        for number in range(BLOCKS):
            inside = block == number
            if leak[~inside].nunique() == 2 and inside.any():
                score[inside] = model_score(self._fitted(~inside), nights[inside])
        threshold = threshold_for(nights, score, self._leaks)
        # Infinity means that no threshold keeps the budget: then alarm only when certain.
        threshold = min(threshold, 1.0)
        parameters = {
            "threshold": round(threshold, 6),
            "false_alarms_a_district_and_year": FALSE_ALARMS_PER_YEAR,
            "features": list(FEATURES),
            "seed": SEED,
        }
        return self._fitted(leak.notna()), parameters

    def score(self, model: Any, parameters: Mapping[str, Any]) -> Scores:
        score = model_score(model, self.held_out)
        own = evaluate(self.held_out, score >= parameters["threshold"], self._leaks)
        return self._scores(self._at_budget(score), own)

    def score_baseline(self) -> Scores:
        """The better of two fixed thresholds on the minimum night flow, each at its best value.

        One is in liters per hour and the same everywhere; the other is a multiple of each district's reference flow.
        """
        scores = (self.rows["min_night_flow_lph"], model_module.baseline_score(self.rows))
        results = [self._at_budget(score[self.held_out.index]) for score in scores]
        best = max(results, key=lambda result: result.saved)
        return self._scores(best, best)

    def _at_budget(self, score: Series) -> Result:
        """Evaluate with the threshold that spends the budget in exactly these nights, to compare at equal cost."""
        threshold = threshold_for(self.held_out, score, self._leaks)
        return evaluate(self.held_out, score >= threshold, self._leaks)

    def _scores(self, result: Result, own: Result) -> Scores:
        counts: dict[str, int] = {}
        for leak in self._leaks:
            if _starts_in(leak, self.held_out):
                counts[leak.district_id] = counts.get(leak.district_id, 0) + 1
        nights = self.held_out["night"]
        return Scores(
            score=result.saved,
            window=f"{nights.min():%Y-%m-%d} to {nights.max():%Y-%m-%d}, {len(nights)} nights, {result.leaks} leaks",
            groups={
                district: saved
                for district, saved in result.saved_by_district.items()
                if counts.get(district, 0) >= MIN_GROUP_LEAKS
            },
            measures={
                "found": result.found,
                # Measured with the threshold that the model will be used with.
                "false_alarms": own.false_alarms,
                "saved_as_used": own.saved,
                "found_as_used": own.found,
            },
        )

    @cached_property
    def _is_leak(self) -> Series:
        return labels(self.training, self._leaks)

    def _fitted(self, chosen: Series) -> Any:
        nights = self.training[chosen]
        return new_model().fit(nights[list(FEATURES)].to_numpy(), self._is_leak[chosen].to_numpy())


def labels(nights: DataFrame, leaks: Sequence[LeakPeriod]) -> Series:
    """Whether each night belongs to a confirmed leak, with the index of `nights`."""
    import pandas as pd

    is_leak = pd.Series(False, index=nights.index)
    for leak in leaks:
        within = nights["night"].dt.date.between(leak.first_night, leak.last_night)
        is_leak |= (nights["district_id"] == leak.district_id) & within
    return is_leak


def train_leak_model(run_id: str, *, force: bool = False, now: datetime | None = None) -> Outcome:
    """Train on the current content of the lake and the operational database; called by the Dag.

    Args:
        run_id: The Dag run.
        force: Train on unchanged data too.
        now: The clock; by default the current time.

    Returns:
        The outcome; without a version when there are too few data or too few new data.
    """
    from include.streams import begin
    from include.streams.lake.buckets import bucket
    from include.streams.models.store import ModelStore
    from include.water.leaks.confirmed import confirmed
    from include.water.leaks.nights import read_nights

    nights = read_nights(now)
    with begin() as connection:
        leaks = confirmed(connection)
    return train_on(ModelStore(model_module.NAME, bucket()), nights, leaks, run_id, force=force)


def train_on(
    store: ModelStore, nights: Nights, leaks: Sequence[LeakPeriod], run_id: str, *, force: bool = False
) -> Outcome:
    """Train, unless there are too few data or too few new data.

    Args:
        store: The ModelStore.
        nights: The complete nights.
        leaks: The confirmed leaks.
        run_id: The Dag run.
        force: Train on unchanged data too.

    Returns:
        The outcome; without a version when nothing was trained.
    """
    try:
        attempt = LeakAttempt(nights, leaks)
    except NotEnough as error:
        return Outcome(None, False, (str(error),))
    last = store.last_training()
    if last is not None and not force and last["fingerprint"] != attempt.fingerprint:
        trained_to = nights.rows["night"].max() - timedelta(days=TRAIN_EVERY_NIGHTS)
        if trained_to.date().isoformat() < last["label"]:
            return Outcome(None, False, (f"too little is new: trained on the nights to {last['label']}",))
    return train(store, GATE, attempt, allowed=ALLOWED_TYPES, run_id=run_id, force=force)


def _starts_in(leak: LeakPeriod, nights: DataFrame) -> bool:
    if nights.empty:
        return False
    return nights["night"].min().date() <= leak.first_night <= nights["night"].max().date()


def _touches(leak: LeakPeriod, nights: DataFrame) -> bool:
    return bool(labels(nights, [leak]).any())


def _fingerprint(rows: DataFrame, leaks: Sequence[LeakPeriod]) -> str:
    """A hash of everything that determines the model: nights, leaks, features, parameters."""
    digest = hashlib.sha256()
    columns = ["district_id", "night", *FLOWS]
    rounded = rows[columns].sort_values(["district_id", "night"]).round(dict.fromkeys(FLOWS, 3))
    digest.update(rounded.to_csv(index=False).encode())
    recipe = [features_module.VERSION, FEATURES, SEED, FALSE_ALARMS_PER_YEAR, HELD_OUT_SHARE, UNCONFIRMED_NIGHTS]
    digest.update(json.dumps([recipe, [str(leak) for leak in leaks]]).encode())
    return digest.hexdigest()
