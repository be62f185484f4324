"""The model that judges nights: the champion or, while there is none, a fixed threshold on the minimum night flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from include.water.leaks.features import FEATURES
from include.water.leaks.frames import DataFrame, Series

NAME = "leaks"
BASELINE_VERSION = "baseline"

SEED = 1

# All types that a model file may contain. A new kind of model needs a new list, and so a code review.
ALLOWED_TYPES = (
    "builtins.dict",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "numpy.float64",
    "numpy.int64",
    "numpy.ndarray",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
)

# The baseline's threshold, used while no leaks are known: this many times the district's reference flow, which is the
# median of its first nights. An engineer would set such a threshold once and leave it.
BASELINE_FACTOR = 2.5
REFERENCE_NIGHTS = 28
MIN_REFERENCE_NIGHTS = 7
# Nobody knows how often the baseline is right. This confidence is just enough for an alert.
BASELINE_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Judgement:
    """The judgement of nights, with the index of the nights.

    Attributes:
        score: The higher, the more likely a leak; null: too little is known.
        alarm: Whether the night has an alarm.
        confidence: From 0 to 1.
        litres_per_hour: The loss above the usual loss, in liters per hour.
    """

    score: Series
    alarm: Series
    confidence: Series
    litres_per_hour: Series


@dataclass(frozen=True)
class Detector:
    """A model with its threshold, or the baseline (`model` is None)."""

    version: str
    model: Any = None
    threshold: float = BASELINE_FACTOR

    def judge(self, nights: DataFrame) -> Judgement:
        """Judge nights.

        Args:
            nights: All known nights, including earlier ones, with `features` joined.
        """
        if self.model is None:
            score = baseline_score(nights)
            alarm = score >= self.threshold
            confidence = score * 0 + BASELINE_CONFIDENCE
        else:
            score = model_score(self.model, nights)
            alarm = score >= self.threshold
            # 0.5 at the threshold, which spends the budget of false alarms: people still go and dig. 1 is certain.
            confidence = (0.5 + 0.5 * (score - self.threshold) / max(1 - self.threshold, 1e-9)).clip(0, 1)
        # The loss may be below the usual loss, although other flows caused the alarm. The contract requires a positive
        # value.
        litres = (nights["night_loss_lph"] - nights["usual_loss_lph"].fillna(0)).clip(lower=1, upper=10_000_000)
        return Judgement(score, alarm, confidence, litres)


def new_model() -> Any:
    """A new, untrained model: logistic regression; its scores are probabilities and its file holds plain arrays."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, random_state=SEED))


def model_score(model: Any, nights: DataFrame) -> Series:
    """The probability of a leak; null where a feature is null."""
    import pandas as pd

    known = nights[list(FEATURES)].dropna()
    score = pd.Series(float("nan"), index=nights.index)
    if len(known):
        score[known.index] = model.predict_proba(known.to_numpy())[:, 1]
    return score


def baseline_score(nights: DataFrame) -> Series:
    """The minimum night flow relative to the median of the district's first nights.

    It is null in the first nights, while there are fewer than MIN_REFERENCE_NIGHTS.

    Args:
        nights: All known nights.
    """
    first = nights["night"].min()
    reference, known = {}, {}
    for district, group in nights.groupby("district_id"):
        earliest = group.sort_values("night").head(REFERENCE_NIGHTS)
        reference[district] = max(float(earliest["min_night_flow_lph"].median()), 1.0)
        known[district] = earliest["night"].iloc[min(MIN_REFERENCE_NIGHTS, len(earliest)) - 1]
    enough = nights["night"] > nights["district_id"].map(known)
    ratio = nights["min_night_flow_lph"] / nights["district_id"].map(reference)
    return ratio.where(enough & (nights["night"] > first))


def champion(store: Any) -> Detector:
    """The champion, or the baseline while there is none.

    Args:
        store: The ModelStore.

    Raises:
        Exception: What `ModelStore.load_champion` raises when the champion cannot be trusted.
    """
    loaded = store.load_champion(ALLOWED_TYPES)
    if loaded is None:
        return Detector(BASELINE_VERSION)
    model, card = loaded
    return Detector(card.version, model, float(card.parameters["threshold"]))
