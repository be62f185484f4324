"""The record of the objects that have been published; that of the table's days is with the table.

With it, unchanged content is not written again, and the retry of a run that was killed continues where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from include.lake.buckets import ABSENT, Bucket
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
        generation: The generation of the manifest's own object.
    """

    days: dict[str, str] = field(default_factory=dict)
    objects: dict[str, tuple[str, int]] = field(default_factory=dict)
    tenures: dict[str, Tenure] = field(default_factory=dict)
    source: str | None = None
    published_at: datetime | None = None
    generation: int = ABSENT

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
        found[1],
    )
