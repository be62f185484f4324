"""PyIceberg's file IO of tables, with one request where gcsfs or s3fs sends two or three.

Both look for folders: for each question about an object that they do not find, they also list the objects below that
name; gcsfs always does. An object store has no folders. Listing is the most expensive request, in money and in time,
and a commit reads dozens of objects.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from pyiceberg.io.fsspec import FsspecFileIO, FsspecInputFile

if TYPE_CHECKING:
    from pyiceberg.typedef import Properties


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
        google = dict.fromkeys(("gs", "gcs"), _google)
        amazon = dict.fromkeys(("s3", "s3a", "s3n"), _amazon)
        _part(self, "_scheme_to_fs", dict).update(google | amazon)

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


# A process imports the client of its own store only.
def _google(properties: Properties) -> AbstractFileSystem:
    from include.streams.compat.google_objects import file_system

    return file_system(properties)


def _amazon(properties: Properties) -> AbstractFileSystem:
    from include.streams.compat.amazon_objects import file_system

    return file_system(properties)
