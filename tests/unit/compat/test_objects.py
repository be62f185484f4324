"""A missing private part of gcsfs or PyIceberg is named: without an error, objects would be listed again."""

import os
import subprocess
import sys

import pytest

# In separate processes: gcsfs reads the environment at its import, and other tests need gcsfs as the catalog sets it.
WITHOUT_A_METHOD = """
from gcsfs.core import GCSFileSystem
del GCSFileSystem._get_directory_info
import include.streams.compat.google_objects
"""
WITHOUT_A_METHOD_OF_S3FS = """
from s3fs import S3FileSystem
del S3FileSystem._call_s3
import include.streams.compat.amazon_objects
"""
WITHOUT_ITS_FILE_SYSTEMS = """
from pyiceberg.io import fsspec
class Changed(fsspec.FileIO):
    new_input = new_output = delete = None
fsspec.FsspecFileIO = Changed
from include.streams.compat.objects import ObjectIO
ObjectIO({})
"""
WITHOUT_THE_FILE_SYSTEM_OF_A_FILE = """
from pyiceberg.io import fsspec
from include.streams.compat.objects import ObjectIO
fsspec.FsspecInputFile.__init__ = lambda self, location, fs: None
ObjectIO({}).new_input("/tmp/file")
"""


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (WITHOUT_A_METHOD, "ImportError: gcsfs has no _get_directory_info: see include/streams/compat/__init__.py"),
        (WITHOUT_A_METHOD_OF_S3FS, "ImportError: s3fs has no _call_s3: see include/"),
        (
            WITHOUT_ITS_FILE_SYSTEMS,
            "TypeError: PyIceberg's ObjectIO has no known _scheme_to_fs: see include/streams/compat",
        ),
        (WITHOUT_THE_FILE_SYSTEM_OF_A_FILE, "TypeError: PyIceberg's FsspecInputFile has no known _fs: see include/"),
    ],
)
def test_a_missing_private_part_is_named(code: str, error: str):
    environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert process.stderr.splitlines()[-1].startswith(error), process.stderr
