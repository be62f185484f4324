"""The record of the published objects. The record of the table's days is in the table's properties.

With these records, unchanged content is not written again, and the retry of a killed run continues where the run ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from include.streams.lake.buckets import ABSENT, Bucket
from include.water.usage.customers import Tenure
from include.water.usage.documents import JSON

PATH = "usage/manifest.json"


@dataclass
class Manifest:
    """The content of the manifest.

    Attributes:
        days: The table's days, as an older release recorded them. It is written empty, because the older release reads
            it after a rollback.
        objects: {customer id: (hash, generation)} of each customer's object.
        tenures: See `customers.assign`.
        source: A hash of all inputs of the last finished publication.
        published_at: When the last finished publication started.
        publication: The number of the last publication that has begun.
        generation: The generation of the manifest's own object.
    """

    days: dict[str, str] = field(default_factory=dict)
    objects: dict[str, tuple[str, int]] = field(default_factory=dict)
    tenures: dict[str, Tenure] = field(default_factory=dict)
    source: str | None = None
    published_at: datetime | None = None
    publication: int = 0
    generation: int = ABSENT

    def begin(self, bucket: Bucket, now: datetime) -> None:
        """Take the number of a new publication, and save the manifest.

        A higher number always means a newer register and newer flows: both were read after this manifest was loaded,
        and no other run has taken a number since then. So a concurrent run, or a late run that was believed dead,
        cannot publish older usage under a higher number.

        Args:
            bucket: The artifacts bucket.
            now: The clock. A number is at least the clock's milliseconds, so it is higher than the numbers of an older
                release, and of a manifest that somebody has deleted.

        Raises:
            GenerationChanged: Another run has saved the manifest since it was loaded.
        """
        self.publication = max(self.publication + 1, int(now.timestamp() * 1000))
        # Until this publication is finished, no run may find that there is nothing to do.
        self.source = None
        self.save(bucket)

    def save(self, bucket: Bucket) -> None:
        """Write the manifest.

        Raises:
            GenerationChanged: Another run has saved it since it was loaded; that run continues.
        """
        document = {
            "days": self.days,
            "objects": self.objects,
            "tenures": {
                meter: [tenure.customer_id, tenure.since.isoformat() if tenure.since else None]
                for meter, tenure in self.tenures.items()
            },
            "source": self.source,
            "published_at": self.published_at.isoformat() if self.published_at else None,
            "publication": self.publication,
        }
        body = json.dumps(document, separators=(",", ":")).encode()
        self.generation = bucket.write(PATH, body, JSON, if_generation_match=self.generation)


def load(bucket: Bucket) -> Manifest:
    found = bucket.read(PATH)
    if found is None:
        return Manifest()
    document: dict[str, Any] = json.loads(found[0])
    return Manifest(
        document["days"],
        {customer: (content, generation) for customer, (content, generation) in document["objects"].items()},
        {
            meter: Tenure(customer_id, date.fromisoformat(since) if since else None)
            for meter, (customer_id, since) in document["tenures"].items()
        },
        document["source"],
        datetime.fromisoformat(document["published_at"]) if document["published_at"] else None,
        # An older release has none.
        document.get("publication", 0),
        found[1],
    )
