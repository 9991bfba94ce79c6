"""A tokenizer makes a row of whole numbers, tokens, of a text, and a text of tokens."""

from __future__ import annotations

import pathlib
from typing import Any, Protocol

import numpy as np

from jaxdecouple.errors import DataError


class Tokenizer(Protocol):
    """What any tokenizer can do.

    Attributes:
        vocab_size: V; tokens are 0..V-1.
        bytes_per_token: of text, if all tokens have as many; else ``None``.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def bytes_per_token(self) -> float | None: ...

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens of a text in UTF-8, [N]."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens, [N]."""
        ...


class ByteTokens:
    """Every byte is a token: any text, indeed any file, and 256 tokens."""

    vocab_size = 256
    bytes_per_token = 1.0

    def encode(self, text: bytes) -> np.ndarray:
        """The bytes, uint8 [N]."""
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        """The text; bytes that are no UTF-8, as at the ends of a cut piece, become question marks."""
        return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")


class CharacterTokens:
    """Every character is a token; the vocabulary is the characters of the text at hand, in the order of their codes.

    Attributes:
        characters: the vocabulary.
    """

    bytes_per_token = None

    def __init__(self, characters: str):
        self.characters = characters
        self._codes = np.array([ord(character) for character in characters])  # ascending

    @property
    def vocab_size(self) -> int:
        """How many characters there are."""
        return len(self.characters)

    @classmethod
    def of(cls, text: bytes) -> CharacterTokens:
        """Of the characters of a text in UTF-8; DataError where it is none."""
        return cls("".join(map(chr, np.unique(_code_points(text)))))

    def encode(self, text: bytes) -> np.ndarray:
        """The characters' places in the vocabulary, uint16 or uint32 [N].

        Raises:
            DataError: the text is no UTF-8, or has a character that the vocabulary lacks.
        """
        codes = _code_points(text)
        places = np.searchsorted(self._codes, codes).clip(0, max(0, self.vocab_size - 1))
        unknown = np.flatnonzero(self._codes[places] != codes) if self.vocab_size else np.arange(len(codes))
        if len(unknown):
            raise DataError(
                f"character {unknown[0]} of the text is {chr(codes[unknown[0]])!r}, which the vocabulary of "
                f"{self.vocab_size} characters lacks; write text of the same characters, or tokens='bytes'"
            )
        return places.astype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, tokens: np.ndarray) -> str:
        """The characters."""
        return "".join(self.characters[token] for token in np.asarray(tokens).tolist())


class FileTokens:
    """The tokenizer in a file of Hugging Face's ``tokenizers``, such as ``tokenizer.json``."""

    bytes_per_token = None

    def __init__(self, path: pathlib.Path):
        """Reads the file.

        Raises:
            DataError: the library is not installed, or the file cannot be read.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(
                f"the vocabulary {path} needs the tokenizers library; pip install 'jaxdecouple[text]', or write "
                "tokens='bytes' or 'characters'"
            ) from error
        if not path.is_file():
            raise DataError(f"there is no vocabulary file {path}; write 'bytes', 'characters' or a tokenizer.json")
        try:
            library: Any = tokenizers
            self._tokenizer = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"{path} is no vocabulary of Hugging Face's tokenizers ({error}); write a tokenizer.json, 'bytes' or "
                "'characters'"
            ) from error

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, those that were added included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens, uint16 or uint32 [N]; DataError where the text is no UTF-8."""
        ids = self._tokenizer.encode(decoded(text), add_special_tokens=False).ids
        return np.array(ids, np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text."""
        return self._tokenizer.decode(np.asarray(tokens).tolist())


def tokenizer_for(tokens: str, text: bytes, data_dir: pathlib.Path = pathlib.Path()) -> Tokenizer:
    """The tokenizer that ``tokens`` names: ``bytes``, ``characters`` (those of ``text``), or the path of a file.

    Raises:
        DataError: there is no such file, or it cannot be used.
    """
    if tokens == "bytes":
        return ByteTokens()
    if tokens == "characters":
        return CharacterTokens.of(text)
    return FileTokens(data_dir / pathlib.Path(tokens).expanduser())


def decoded(text: bytes) -> str:
    """A text in UTF-8.

    Raises:
        DataError: it is none; the message names the offset of the first byte that is wrong.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is no UTF-8 at byte {error.start} (0x{text[error.start]:02x}); convert the file, or write "
            "tokens='bytes', which takes any"
        ) from error


def _code_points(text: bytes) -> np.ndarray:
    return np.frombuffer(decoded(text).encode("utf-32-le"), np.uint32)
