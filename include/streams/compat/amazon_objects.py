"""Amazon S3 for PyIceberg and DuckDB, without listings for questions about one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyiceberg.io
from pyiceberg.io import fsspec
from s3fs import S3FileSystem

if TYPE_CHECKING:
    from pyiceberg.typedef import Properties

_USED = ("_call_s3", "_info", "_open")
if missing := [name for name in _USED if not hasattr(S3FileSystem, name)]:
    raise ImportError(f"s3fs has no {', '.join(missing)}: see include/streams/compat/__init__.py")
# The keys of a session that a REST catalog gives for one table. They count more than the connection.
_GIVEN = (pyiceberg.io.S3_ACCESS_KEY_ID, pyiceberg.io.S3_SIGNER)


class ObjectFileSystem(S3FileSystem):
    """S3 without folders: a path is an object or does not exist. Only a bucket is a folder."""

    async def _info(self, path: str, bucket: Any = None, key: Any = None, refresh: bool = False, **options: Any) -> Any:
        in_bucket, name, _ = self.split_path(path)
        if not name:
            return await super()._info(path, bucket, key, refresh, **options)
        found: Any = await self._call_s3("head_object", Bucket=in_bucket, Key=name)
        return {
            "name": f"{in_bucket}/{name}",
            "type": "file",
            "size": found["ContentLength"],
            "LastModified": found["LastModified"],
            "ETag": found["ETag"],
        }

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, mode, **{"cache_type": "readahead", **options})


def file_system(properties: Properties) -> Any:
    """A file system with the credentials of the connection, or with those that a REST catalog gives for a table."""
    if any(properties.get(name) for name in _GIVEN) or "s3.session" not in properties:
        return fsspec.SCHEME_TO_FS["s3"](properties)
    session: Any = properties["s3.session"]
    settings: Any = properties.get("s3.config", {})
    return ObjectFileSystem(
        session=session,
        anon=properties.get(pyiceberg.io.S3_ANONYMOUS) == "True",
        endpoint_url=properties.get(pyiceberg.io.S3_ENDPOINT),
        config_kwargs=dict(settings),
        # Otherwise listings are cached forever: a deleted object would seem to exist.
        use_listings_cache=False,
        # One request for a file; with more, s3fs first asks for the file's size.
        max_concurrency=1,
    )
