"""The record of the objects that have been published; that of the table's days is with the table.

With it, unchanged content is not written again, and the retry of a run that was killed continues where it stopped.
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
        days: What an older release has recorded of the table's days. It is written empty, because that release reads it
            after a rollback.
        objects: {customer id: (hash, generation)} of each customer's object.
        tenures: See `customers.assign`.
        source: A hash of everything that the last finished publication was made from.
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

        Every publication has a higher number than those before, also with the same flows, and its register and flows
        are newer: they were read after this manifest was loaded, and nobody else has taken a number since. So neither
        two runs at once nor a run that was thought dead can publish older usage under a higher number.

        Args:
            bucket: The artifacts bucket.
            now: The clock. The numbers are those of its milliseconds, so that they also go on behind the numbers of an
                older release, and of a manifest that somebody has deleted.

        Raises:
            GenerationChanged: Another run has saved the manifest since it was loaded.
        """
        self.publication = max(self.publication + 1, int(now.timestamp() * 1000))
        # Until it is finished, no run may find that there is nothing to do.
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
