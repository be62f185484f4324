"""A private part of gcsfs or PyIceberg that is missing is named: objects are not listed again, unsaid."""

import os
import subprocess
import sys

import pytest

# In processes of their own: gcsfs reads the environment at its import, and other tests need it as the catalog sets it.
WITHOUT_A_METHOD = """
from gcsfs.core import GCSFileSystem
del GCSFileSystem._get_directory_info
import include.streams.compat.objects
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
        (
            WITHOUT_ITS_FILE_SYSTEMS,
            "TypeError: PyIceberg's ObjectIO has no known _scheme_to_fs: see include/streams/compat",
        ),
        (WITHOUT_THE_FILE_SYSTEM_OF_A_FILE, "TypeError: PyIceberg's FsspecInputFile has no known _fs: see include/"),
    ],
)
def test_a_private_part_that_is_missing_is_named(code: str, error: str):
    environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert found.stderr.splitlines()[-1].startswith(error), found.stderr
