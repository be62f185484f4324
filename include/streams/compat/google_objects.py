"""Google Cloud Storage for PyIceberg and DuckDB, without listings for questions about one object.

Import it after `lake.google` has made the properties: gcsfs reads its settings from the environment at its import.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyiceberg.io
from aiohttp import ClientTimeout
from gcsfs import GCSFileSystem
from pyiceberg.utils.properties import property_as_bool

if TYPE_CHECKING:
    from pyiceberg.typedef import Properties

# In seconds. Without limits, a connection that was lost without a packet would block its caller forever. If connecting
# or a read takes too long, gcsfs tries again, up to five times. After `total` it does not try again; `total` is enough
# for the largest file.
TIMEOUT = ClientTimeout(sock_connect=10, sock_read=30, total=600)

# If gcsfs renames one of these methods, the override below is never called, and objects would be listed again without
# an error.
_OVERRIDDEN = ("_get_directory_info", "_get_file", "_open")
if missing := [name for name in _OVERRIDDEN if not hasattr(GCSFileSystem, name)]:
    raise ImportError(f"gcsfs has no {', '.join(missing)}: see include/streams/compat/__init__.py")


class ObjectFileSystem(GCSFileSystem):
    """Google Cloud Storage without folders: a path is an object or does not exist. Only a bucket is a folder."""

    async def _get_directory_info(self, path: str, *_: object) -> dict[str, Any]:
        raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        # The default reads ahead in asyncio tasks. If a file is not closed, its tasks remain, and each logs an error.
        return super()._open(path, mode, **{"cache_type": "readahead", **options})

    async def _get_file(self, rpath: str, lpath: str, callback: Any = None, **options: Any) -> None:
        # The default fetches a file in several parts, and sends one more request for the file's size first.
        await super()._get_file(rpath, lpath, callback, **{"concurrency": 1, **options})


def file_system(properties: Properties) -> ObjectFileSystem:
    """A file system with the settings that PyIceberg knows: `lake.catalog` and a connection's extra may set them."""
    return ObjectFileSystem(
        project=properties.get(pyiceberg.io.GCS_PROJECT_ID),
        access=properties.get(pyiceberg.io.GCS_ACCESS, "full_control"),
        token=properties.get(pyiceberg.io.GCS_TOKEN),
        consistency=properties.get(pyiceberg.io.GCS_CONSISTENCY, "none"),
        requester_pays=property_as_bool(properties, pyiceberg.io.GCS_REQUESTER_PAYS, False),
        session_kwargs=json.loads(properties.get(pyiceberg.io.GCS_SESSION_KWARGS, "{}")),
        endpoint_url=properties.get(pyiceberg.io.GCS_SERVICE_HOST),
        default_location=properties.get(pyiceberg.io.GCS_DEFAULT_LOCATION),
        requests_timeout=TIMEOUT,
        # Otherwise listings are cached forever: a deleted object would seem to exist.
        use_listings_cache=False,
    )
