"""Text data: one long row of tokens, from a text or a file of tokens, given out in sequences."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from jaxdecouple.data.batches import check_epoch
from jaxdecouple.data.tokenizers import Tokenizer, tokenizer_for
from jaxdecouple.errors import DataError

FORMS = "'pydoc', 'text:FILE' (plain, .gz or .xz) or 'tokens:FILE.npy'"
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_TRAIN_SHARE = 0.9
_CHUNK = 2**24


class TextData:
    """A row of tokens, its first nine tenths to train on and the rest to test, cut into sequences.

    An example is a sequence of T tokens, and as targets the tokens one later. Shapes: B sequences of T tokens.

    Attributes:
        name: what results on these data are reported under.
        tokens: [N] unsigned integers; they may lie on disk (``numpy.memmap``).
        tokenizer: what made them; ``None`` where that is not known.
        vocab_size: V; tokens are 0..V-1.
        context: T.
        bytes_per_token: mean length of a token of the test part, in bytes of text; ``None`` where that is not known.
    """

    def __init__(
        self,
        name: str,
        tokens: np.ndarray,
        context: int,
        tokenizer: Tokenizer | None = None,
        most_test: int = 0,
    ):
        """Splits the row.

        Args:
            name, tokens, tokenizer: as the attributes.
            context: T, tokens of a sequence.
            most_test: test sequences at most, the first of the test part; 0: all.

        Raises:
            DataError: the tokens are no row of integers, too few for a sequence in each part, or beyond the vocabulary.
        """
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise DataError(f"{name}: tokens are {tokens.dtype}{list(tokens.shape)}; write one row of integers, [N]")
        if context < 1:
            raise DataError(f"{name}: context is {context}; write how many tokens a sequence has, at least 1")
        self.name, self.tokens, self.context, self.tokenizer = name, tokens, context, tokenizer
        self._split, self._most_test = int(_TRAIN_SHARE * len(tokens)), most_test
        if min(self.num_train, self.num_test) < 1:
            raise DataError(
                f"{name} has {len(tokens)} tokens, {len(tokens) - self._split} of them to test on: too few for "
                f"sequences of {context}; write a shorter context, or give more text"
            )
        low, high = _range(tokens)
        self.vocab_size = high + 1 if tokenizer is None else tokenizer.vocab_size
        if low < 0 or high >= self.vocab_size:
            raise DataError(
                f"{name} has tokens from {low} to {high}, but its vocabulary has {self.vocab_size}; write the "
                "vocabulary file that the tokens were made with"
            )
        self.bytes_per_token = self._bytes_per_token()

    @property
    def num_train(self) -> int:
        """Training sequences of an epoch: as many as fit wherever the epoch begins within its first T tokens."""
        return max(0, (self._split - self.context) // self.context)

    @property
    def num_test(self) -> int:
        """Test sequences."""
        fit = max(0, (len(self.tokens) - self._split - 1) // self.context)
        return min(fit, self._most_test) if self._most_test else fit

    def fingerprint(self) -> str:
        """Changes with any token, and with the length of sequences."""
        digest = hashlib.blake2b(f"{self.context} {self.vocab_size} {self._most_test}".encode(), digest_size=16)
        for part in _chunks(self.tokens):
            digest.update(np.ascontiguousarray(part, np.uint32))
        return digest.hexdigest()

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, drop_last: bool = False, start: int = 0, augment: bool = True
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch's batches of tokens [B, T] and targets [B, T], int32, the last perhaps with fewer than B.

        An epoch begins at a random one of the first T tokens, goes through the text once in sequences that follow one
        another, and gives them out in a random order; all from ``numpy.random.default_rng([seed, epoch])``. So any
        epoch can be made again by itself, from any batch on.

        Args:
            batch_size: B.
            seed, epoch: non-negative integers that choose the order.
            drop_last: leave out the last batch if it has fewer than B sequences.
            start: batches to skip, without reading them: what follows is the rest of the epoch.
            augment: not read.

        Raises:
            DataError: at the call, for what is no epoch.
        """
        count = check_epoch(self.num_train, batch_size, seed, epoch, drop_last, start)
        random = np.random.default_rng([seed, epoch])
        first = random.integers(self.context)
        order = first + self.context * random.permutation(self.num_train)
        return (self._batch(order[i * batch_size : (i + 1) * batch_size]) for i in range(start, count))

    def test_batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The test sequences in their order, the last batch perhaps with fewer than B."""
        starts = self._split + self.context * np.arange(self.num_test)
        return (self._batch(starts[i : i + batch_size]) for i in range(0, self.num_test, batch_size))

    def _batch(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.stack([self.tokens[start : start + self.context + 1] for start in starts]).astype(np.int32)
        return rows[:, :-1], rows[:, 1:]

    def _bytes_per_token(self) -> float | None:
        if self.tokenizer is None:
            return None
        if self.tokenizer.bytes_per_token is not None:
            return self.tokenizer.bytes_per_token
        targets = self.tokens[self._split + 1 : self._split + 1 + self.num_test * self.context]
        return len(self.tokenizer.decode(np.asarray(targets)).encode()) / len(targets)


def load_text(
    spec: str, *, context: int = 256, tokens: str = "bytes", data_dir: str | None = None, most_test: int = 0
) -> TextData:
    """The text that ``spec`` names, as sequences of tokens.

    Args:
        spec: one of
            - ``pydoc``: the reference texts that every CPython carries, half a megabyte of English;
            - ``text:FILE``: a text in UTF-8, plain or compressed (.gz, .xz); as ``bytes``, any file;
            - ``tokens:FILE.npy``: a NumPy array of tokens, [N], which is read from disk as it is needed.
        context: T, tokens of a sequence.
        tokens: ``bytes``, ``characters``, or the file of a tokenizer (``tokenizer.json`` of Hugging Face's
            ``tokenizers``). Of ``tokens:FILE.npy``, such a file says what made them; ``bytes`` says nothing.
        data_dir: where relative paths start (default: the working directory).
        most_test: test sequences at most; 0: all of the last tenth.

    Raises:
        DataError: there is no such text, it cannot be read or is empty, or does not fit its vocabulary.
    """
    kind, _, path = spec.partition(":")
    place = pathlib.Path(data_dir or "").expanduser()
    if kind == "tokens" and path:
        row = _read_tokens(place / pathlib.Path(path).expanduser())
        tokenizer = None if tokens == "bytes" else tokenizer_for(tokens, b"", place)
        return TextData(pathlib.Path(path).stem, row, context, tokenizer, most_test)
    if spec == "pydoc":
        name, text = spec, _pydoc()
    elif kind == "text" and path:
        name, text = pathlib.Path(path).name.split(".")[0], _read_text(place / pathlib.Path(path).expanduser())
    else:
        raise DataError(f"unknown text {spec!r}; write {FORMS}")
    try:
        tokenizer = tokenizer_for(tokens, text, place)
        return TextData(name, tokenizer.encode(text), context, tokenizer, most_test)
    except DataError as error:
        raise DataError(f"{spec}: {error}") from error


def is_text(spec: str) -> bool:
    """Whether `load_text` is what loads ``spec``."""
    return spec.partition(":")[0] in ("text", "pydoc", "tokens")


def _pydoc() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[topic] for topic in sorted(topics)).encode()


def _read_text(path: pathlib.Path) -> bytes:
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            text = file.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"the text {path} cannot be read ({error}); write a file that is there, and whole") from error
    if not text:
        raise DataError(f"the text {path} is empty; write a file with some text")
    return text


def _read_tokens(path: pathlib.Path) -> np.ndarray:
    try:
        row = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no readable file of tokens ({error}); write one with numpy.save(path, tokens)"
        ) from error
    if not isinstance(row, np.ndarray):
        raise DataError(f"{path} holds several arrays; write one alone, with numpy.save(path, tokens)")
    return row


def _chunks(row: np.ndarray) -> Iterator[np.ndarray]:
    return (row[i : i + _CHUNK] for i in range(0, len(row), _CHUNK))


def _range(row: np.ndarray) -> tuple[int, int]:
    lows, highs = zip(*((part.min(), part.max()) for part in _chunks(row)), strict=True)
    return int(min(lows)), int(max(highs))
