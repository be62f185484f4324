"""A setting that gcsfs reads at its import, so it is set before the import."""

from __future__ import annotations

import os


def disable_layout_calls() -> None:
    """Let gcsfs not ask an emulator for the layout of its buckets.

    Emulators do not have this API, and gcsfs would wait 60 s for each bucket. A value in the environment stays.
    """
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
