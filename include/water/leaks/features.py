"""The features of a district's night: its loss, compared with the nights before.

Features use no data of later nights. Otherwise a model would be judged with data that do not exist yet when it is used.
"""

from __future__ import annotations

from include.water.leaks.frames import DataFrame

# A district's usual night is computed from at most this many earlier nights; with fewer known nights than MIN_NIGHTS,
# the features are null.
WINDOW_NIGHTS = 56
MIN_NIGHTS = 10
# Not the median: with it, a leak of some weeks would become usual.
USUAL_QUANTILE = 0.25
# Added to both sides of a ratio: a few liters more than nearly nothing are not a leak.
FLOOR_LPH = 10.0

# A night needs all of these flows.
FLOWS = ("min_night_flow_lph", "metered_night_flow_lph", "night_loss_lph", "least_hourly_loss_lph")
# Few and robust features. The lowest hourly loss of a night is the flow that runs all night: water for gardens is
# metered, and a main is flushed for only an hour or two. On four simulated networks, the night's mean loss as a further
# feature made the model worse, and inflow and use changed nothing. The median of the other districts saved 0.08
# (standard deviation 0.09) more of the water at the same budget, but no more with the threshold of a training.
FEATURES = (
    "least_loss",  # logarithm of its ratio to the usual value: 0 is as usual, 0.7 twice as much
    "unusual_loss",  # its distance above the usual value, in units of how much that varies; large values are compressed
    "lasting_loss",  # the lowest least_loss of three nights
)
# Increment it when the same nights give other features: they are then different training data.
VERSION = 1


def features(nights: DataFrame) -> DataFrame:
    """Compute the features of nights.

    Args:
        nights: A row for each district and night, with `district_id`, `night` (datetime64 at midnight), and FLOWS in
            liters per hour.

    Returns:
        FEATURES and `usual_loss_lph` for each row, with the index of `nights`; null where too little is known.
    """
    import pandas as pd

    computed = pd.concat([_of_district(group) for _, group in nights.groupby("district_id", sort=True)])
    keys = pd.MultiIndex.from_frame(nights[["district_id", "night"]])
    computed = computed.set_index(["district_id", "night"]).loc[keys, [*FEATURES, "usual_loss_lph"]]
    computed.index = nights.index
    return computed


def _of_district(nights: DataFrame) -> DataFrame:
    import numpy as np

    by_night = nights.set_index("night").sort_index()
    # Include every calendar night, so that three nights are consecutive, not the last three with data.
    flows = by_night[["least_hourly_loss_lph", "night_loss_lph"]].asfreq("D")
    # shift: the window ends with the night before.
    past = flows.shift(1).rolling(WINDOW_NIGHTS, min_periods=MIN_NIGHTS)
    usual = past.quantile(USUAL_QUANTILE)
    # A negative loss (more metered than flowed in) is within the meters' error and counts as no loss.
    least, usual_least = (frame["least_hourly_loss_lph"].clip(lower=0) for frame in (flows, usual))
    spread = past["least_hourly_loss_lph"].quantile(0.4) - past["least_hourly_loss_lph"].quantile(0.1)
    ratio = np.log((least + FLOOR_LPH) / (usual_least + FLOOR_LPH))
    result = flows[[]].assign(
        least_loss=ratio,
        # arcsinh: otherwise one burst would outweigh all other leaks.
        unusual_loss=np.arcsinh((least - usual_least) / (spread + FLOOR_LPH)),
        lasting_loss=ratio.rolling(3, min_periods=1).min(),
        usual_loss_lph=usual["night_loss_lph"].clip(lower=0),
    )
    return result.loc[by_night.index].assign(district_id=nights["district_id"].iloc[0]).reset_index()
