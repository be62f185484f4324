"""The kinds of alarms of the example."""

from include.streams import KindWithRunbook


class WaterAlarmKind(KindWithRunbook):
    """Key: the rejected file, or the meter."""

    file_rejected = "file_rejected", "suite-failed.md#a-file-of-the-register-was-set-aside"
    meter_clock_ahead = "meter_clock_ahead", "suite-failed.md#one-source-misbehaves"
    meter_in_unknown_district = "meter_in_unknown_district", "suite-failed.md#one-source-misbehaves"
    meter_sends_too_often = "meter_sends_too_often", "suite-failed.md#one-source-misbehaves"
