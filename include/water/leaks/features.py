"""What is known of a district's night at that night: its loss, beside that of the nights before.

Nothing of a later night is in a night's features, or a model would be judged on what it cannot have when it is needed.
"""

from __future__ import annotations

from include.water.leaks.frames import DataFrame

# A district's usual night is taken from this many nights before; with fewer known nights, nothing is said.
WINDOW_NIGHTS = 56
MIN_NIGHTS = 10
# Not the median: a leak of some weeks would become usual.
USUAL_QUANTILE = 0.25
# Added to both sides of a ratio: a few litres more than nearly nothing are no leak.
FLOOR_LPH = 10.0

# What must be known of a night.
FLOWS = ("min_night_flow_lph", "metered_night_flow_lph", "night_loss_lph", "least_hourly_loss_lph")
# Few and robust. The least loss of the night's hours is what runs all night: gardens that are watered are metered, and
# a main is flushed for an hour or two. On four simulated networks, the night's mean loss made the model worse, inflow
# and use changed nothing; the median of the other districts saves 0.08 (standard deviation 0.09) more of the water at
# the same budget, and nothing more with the threshold that a training chooses.
FEATURES = (
    "least_loss",  # logarithm of its ratio to the usual one: 0 is as usual, 0.7 twice as much
    "unusual_loss",  # how far it is above the usual one, in units of how much that varies; large values drawn in
    "lasting_loss",  # least_loss, the least of three nights
)
# Bumped when the same nights give other features: they are then other data to train on.
VERSION = 1


def features(nights: DataFrame) -> DataFrame:
    """FEATURES of each night, in the order of `nights`, and `usual_loss_lph`; null where too little is known.

    nights: district_id, night (datetime64 at midnight), and FLOWS, a row for each district and night.
    """
    import pandas as pd

    found = pd.concat([_of_district(group) for _, group in nights.groupby("district_id", sort=True)])
    keys = pd.MultiIndex.from_frame(nights[["district_id", "night"]])
    found = found.set_index(["district_id", "night"]).loc[keys, [*FEATURES, "usual_loss_lph"]]
    found.index = nights.index
    return found


def _of_district(nights: DataFrame) -> DataFrame:
    import numpy as np

    by_night = nights.set_index("night").sort_index()
    # Every calendar night, so that three nights are that, and not the last three with data.
    flows = by_night[["least_hourly_loss_lph", "night_loss_lph"]].asfreq("D")
    # shift: the window ends with the night before.
    past = flows.shift(1).rolling(WINDOW_NIGHTS, min_periods=MIN_NIGHTS)
    usual = past.quantile(USUAL_QUANTILE)
    # More metered than flowed in: within the meters' error, no loss.
    least, usual_least = (frame["least_hourly_loss_lph"].clip(lower=0) for frame in (flows, usual))
    spread = past["least_hourly_loss_lph"].quantile(0.4) - past["least_hourly_loss_lph"].quantile(0.1)
    ratio = np.log((least + FLOOR_LPH) / (usual_least + FLOOR_LPH))
    result = flows[[]].assign(
        least_loss=ratio,
        # One burst would else outweigh all other leaks.
        unusual_loss=np.arcsinh((least - usual_least) / (spread + FLOOR_LPH)),
        lasting_loss=ratio.rolling(3, min_periods=1).min(),
        usual_loss_lph=usual["night_loss_lph"].clip(lower=0),
    )
    return result.loc[by_night.index].assign(district_id=nights["district_id"].iloc[0]).reset_index()
