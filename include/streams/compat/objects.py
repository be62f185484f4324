"""PyIceberg's file IO of tables, with one request where gcsfs sends two or three.

gcsfs looks for folders: for each question about an object, it also lists the objects below that name. An object store
has no folders. Listing is the most expensive request, in money and in time, and a commit reads dozens of objects.

Import it after `lake.catalog.file_properties`: gcsfs reads its settings from the environment at its import.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pyiceberg.io
from aiohttp import ClientTimeout
from fsspec import AbstractFileSystem
from gcsfs import GCSFileSystem
from pyiceberg.io.fsspec import FsspecFileIO, FsspecInputFile
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


class _WholeFile(FsspecInputFile):
    """A file that is read with one request: metadata and manifests, which PyIceberg always reads completely."""

    def __init__(self, location: str, store: AbstractFileSystem) -> None:
        super().__init__(location, store)
        self._store = store

    def open(self, seekable: bool = True) -> Any:
        whole: Any = self._store.cat_file(self.location)
        return io.BytesIO(whole)


class ObjectIO(FsspecFileIO):
    """PyIceberg's file IO for every store. The catalog's property `py-io-impl` contains its name."""

    def __init__(self, properties: Properties) -> None:
        super().__init__(properties)
        _part(self, "_scheme_to_fs", dict).update(gs=_google, gcs=_google)

    def new_input(self, location: str) -> FsspecInputFile:
        return _WholeFile(location, _part(super().new_input(location), "_fs", AbstractFileSystem))


def _part(owner: Any, name: str, kind: type) -> Any:
    """A private attribute of an object of PyIceberg; raises TypeError when it is missing or is something else."""
    part = getattr(owner, name, None)
    if not isinstance(part, kind):
        raise TypeError(
            f"PyIceberg's {type(owner).__name__} has no known {name}: see include/streams/compat/__init__.py"
        )
    return part


def _google(properties: Properties) -> ObjectFileSystem:
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
