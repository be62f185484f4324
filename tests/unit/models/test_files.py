"""A model file is loaded only if all types in it are on the list."""

from __future__ import annotations

import functools
import io
import json
import operator
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from include.streams.models import files
from include.streams.models.files import UntrustedModel

ALLOWED = (
    "builtins.dict",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "numpy.float64",
    "numpy.ndarray",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
)


def small_model():
    x = np.random.default_rng(1).normal(size=(50, 3))
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(x, x[:, 0] > 0)


def archive(tree: Any) -> bytes:
    """A model file with this tree, as a person who can write to the bucket could make it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        made.writestr("schema.json", json.dumps({**tree, "protocol": 2, "_skops_version": "0.16"}))
    return data.getvalue()


def test_a_saved_model_loads_unchanged():
    model = small_model()
    x = np.ones((4, 3))
    loaded = files.from_bytes(files.to_bytes(model, ALLOWED), ALLOWED)
    assert np.array_equal(loaded.predict_proba(x), model.predict_proba(x))


def test_a_type_that_skops_trusts_is_refused_unless_it_is_listed():
    data = skops.io.dumps(make_pipeline(FunctionTransformer(), LogisticRegression()))
    assert skops.io.get_untrusted_types(data=data) == []
    with pytest.raises(UntrustedModel, match="FunctionTransformer"):
        files.from_bytes(data, ALLOWED)
    with pytest.raises(UntrustedModel, match="StandardScaler"):
        files.from_bytes(files.to_bytes(small_model(), ALLOWED), [name for name in ALLOWED if "Standard" not in name])


def test_a_model_that_could_not_be_loaded_is_not_saved():
    with pytest.raises(UntrustedModel, match="FunctionTransformer"):
        files.to_bytes(FunctionTransformer(), ALLOWED)


def attacks(proof: Path) -> dict[str, bytes]:
    """Files that create the file `proof` when skops loads them and trusts the types in them."""
    call = functools.partial(os.system, f"touch {proof}")
    reduced = {
        "__class__": "system",
        "__module__": "posix",
        "__loader__": "ConstructorFromReduceNode",
        "content": {
            "__class__": "tuple",
            "__module__": "builtins",
            "__loader__": "TupleNode",
            "content": [
                {
                    "__class__": "str",
                    "__module__": "builtins",
                    "__loader__": "JsonNode",
                    "content": json.dumps(f"touch {proof}"),
                    "is_json": True,
                }
            ],
        },
    }  # fmt: skip
    hidden = {
        "__class__": "dict",
        "__module__": "builtins",
        "__loader__": "DictNode",
        "content": {"steps": reduced},
        "key_types": reduced,
    }
    return {
        "a partial": skops.io.dumps(call),
        "a function": skops.io.dumps({"a": shutil.rmtree}),
        "an operator": skops.io.dumps(operator.methodcaller("x")),
        "a reduced object": archive(reduced),
        "a reduced object deep inside": archive(hidden),
    }


@pytest.mark.parametrize(
    "name", ["a partial", "a function", "an operator", "a reduced object", "a reduced object deep inside"]
)
def test_a_file_that_would_call_code_is_refused_before_any_object_exists(name: str, tmp_path: Path):
    proof = tmp_path / "called"
    data = attacks(proof)[name]
    with pytest.raises(UntrustedModel, match="not on the list"):
        files.from_bytes(data, ALLOWED)
    # Also when somebody has put the type on the list: nodes that call are never loaded.
    with pytest.raises(UntrustedModel, match="not only data"):
        files.from_bytes(data, [*ALLOWED, *files.types_in(data)])
    assert not proof.exists()


def test_skops_alone_would_call_the_code(tmp_path: Path):
    """The attack is real: the refusal prevents it."""
    proof = tmp_path / "called"
    data = attacks(proof)["a partial"]
    skops.io.loads(data, trusted=files.types_in(data))()
    assert proof.exists()


class Planted:
    def __reduce__(self):
        return (os.system, ("touch /tmp/never",))


@pytest.mark.parametrize("data", [b"", b"no archive", pickle.dumps(Planted()), b"PK\x05\x06" + b"\0" * 18])
def test_a_file_that_is_not_a_model_is_refused(data: bytes):
    with pytest.raises(UntrustedModel, match="no model file"):
        files.from_bytes(data, ALLOWED)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch):
    data = files.to_bytes(small_model(), ALLOWED)
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UntrustedModel, match="unpacks to more than 1000 bytes"):
        files.from_bytes(data, ALLOWED)
