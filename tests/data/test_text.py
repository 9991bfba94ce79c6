"""Texts: tokens of any kind, sequences that follow from seed and epoch alone, and errors that say what to mend."""

import gzip
import lzma
import sys
import types

import numpy as np
import pytest

from jaxdecouple.data import CharacterTokens, DataError, TextData, load_text

TEXT = "Now is the winter of our discontent, made glorious summer by this sun of York — äöü.\n" * 9


@pytest.fixture
def place(tmp_path):
    (tmp_path / "plain.txt").write_text(TEXT)
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "smaller.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    return tmp_path


@pytest.mark.parametrize("name", ["plain.txt", "small.txt.gz", "smaller.txt.xz"])
@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_a_text_and_its_tokens(place, name, tokens):
    data = load_text(f"text:{name}", context=10, tokens=tokens, data_dir=place)
    assert data.tokenizer.decode(data.tokens) == TEXT
    expected = len(TEXT.encode()) if tokens == "bytes" else len(TEXT)
    assert (len(data.tokens), data.vocab_size) == (expected, 256 if tokens == "bytes" else len(set(TEXT)))
    inputs = np.concatenate([x.reshape(-1) for x, _ in data.test_batches(3)])
    targets = np.concatenate([y.reshape(-1) for _, y in data.test_batches(3)])
    first = int(0.9 * expected)
    np.testing.assert_array_equal(inputs, data.tokens[first : first + data.num_test * 10])
    np.testing.assert_array_equal(targets, data.tokens[first + 1 : first + 1 + data.num_test * 10])
    said = data.tokenizer.decode(targets)
    assert data.bytes_per_token == 1 if tokens == "bytes" else len(said.encode()) / len(said)


def test_an_epoch_is_a_pass_through_the_training_part():
    data = TextData("row", np.arange(1000), 7)
    for epoch in range(3):
        batches = list(data.train_batches(4, seed=5, epoch=epoch))
        assert len(batches) == -(-data.num_train // 4) and batches[0][0].dtype == np.int32
        x, y = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
        np.testing.assert_array_equal(x + 1, y)
        seen = np.sort(x.reshape(-1))
        np.testing.assert_array_equal(seen, np.arange(seen[0], seen[0] + 7 * data.num_train))
        assert seen[0] < 7 and y.max() < 900 and not (np.diff(x[:, 0]) == 7).all()
        again = list(data.train_batches(4, seed=5, epoch=epoch, start=3))
        np.testing.assert_equal(again, batches[3:])
    firsts = [next(data.train_batches(4, seed=seed, epoch=epoch))[0] for seed in (0, 1) for epoch in (0, 1)]
    assert len({first.tobytes() for first in firsts}) == 4
    assert sum(len(x) for x, _ in data.train_batches(4, seed=0, epoch=0, drop_last=True)) == data.num_train // 4 * 4


def test_pydoc_is_english_in_every_python():
    data = load_text("pydoc", context=64, most_test=5)
    assert len(data.tokens) > 3e5 and "statement" in data.tokenizer.decode(data.tokens)
    assert data.num_test == 5 == sum(len(x) for x, _ in data.test_batches(2))


def test_a_file_of_tokens_is_read_as_it_is_needed(place):
    np.save(place / "ids.npy", np.arange(500, dtype=np.uint16) % 300)
    data = load_text("tokens:ids.npy", context=10, data_dir=place)
    assert isinstance(data.tokens, np.memmap) and data.vocab_size == 300 and data.bytes_per_token is None
    other = TextData("ids", np.arange(1, 501) % 300, 10)
    assert data.fingerprint() != other.fingerprint()
    assert data.fingerprint() == TextData("ids", np.arange(500) % 300, 10).fingerprint()


class Words:
    """What this library uses of ``tokenizers.Tokenizer``: words as tokens."""

    words = sorted(set(TEXT.split()))

    @classmethod
    def from_file(cls, path):
        if path.endswith("broken.json"):
            raise Exception("expected value at line 1")
        return cls()

    def get_vocab_size(self):
        return len(self.words)

    def encode(self, text, add_special_tokens):
        return types.SimpleNamespace(ids=[self.words.index(word) for word in text.split()])

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


def test_a_vocabulary_file_of_another_library(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Words))
    (place / "words.json").write_text("{}")
    (place / "broken.json").write_text("")
    data = load_text("text:plain.txt", context=4, tokens="words.json", data_dir=place)
    assert data.vocab_size == len(Words.words) and data.tokenizer.decode(data.tokens) == " ".join(TEXT.split())
    targets = np.concatenate([y.reshape(-1) for _, y in data.test_batches(1)])
    assert data.bytes_per_token == len(data.tokenizer.decode(targets).encode()) / len(targets)
    np.save(place / "ids.npy", np.arange(500, dtype=np.uint16) % 300)
    for spec, tokens, message in (
        ("tokens:ids.npy", "words.json", f"tokens from 0 to 299, but its vocabulary has {data.vocab_size}; write the"),
        ("text:plain.txt", "broken.json", "no vocabulary of Hugging Face's tokenizers .expected value"),
        ("text:plain.txt", "none.json", "there is no vocabulary file .*none.json; write 'bytes'"),
    ):
        with pytest.raises(DataError, match=message):
            load_text(spec, context=4, tokens=tokens, data_dir=place)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"needs the tokenizers library; pip install 'jaxdecouple\[text\]'"):
        load_text("text:plain.txt", context=4, tokens="words.json", data_dir=place)


def test_what_cannot_be_read_is_refused(place):
    (place / "empty.txt").write_bytes(b"")
    (place / "latin.txt").write_bytes(TEXT.encode() + b"caf\xe9")
    (place / "cut.txt.xz").write_bytes(lzma.compress(TEXT.encode())[:-9])
    np.save(place / "floats.npy", np.ones(9))
    np.savez(place / "two.npz", a=np.ones(9, int))
    for spec, settings, message in (
        ("text:empty.txt", {}, "empty.txt is empty; write a file with some text"),
        ("text:none.txt", {}, "none.txt cannot be read .*No such file"),
        ("text:cut.txt.xz", {}, "cut.txt.xz cannot be read .*ended before"),
        ("text:latin.txt", {"tokens": "characters"}, f"no UTF-8 at byte {len(TEXT.encode()) + 3} .0xe9.; convert"),
        ("text:plain.txt", {"context": 90}, "too few for sequences of 90; write a shorter context"),
        ("text:plain.txt", {"context": 0}, "context is 0; write how many tokens"),
        ("text", {}, "unknown text 'text'; write 'pydoc', 'text:FILE'"),
        ("tokens:floats.npy", {}, "tokens are float64.9.; write one row of integers"),
        ("tokens:two.npz", {}, "two.npz holds several arrays"),
        ("tokens:plain.txt", {}, "plain.txt is no readable file of tokens"),
    ):
        with pytest.raises(DataError, match=message):
            load_text(spec, data_dir=place, **settings)
    assert load_text("text:latin.txt", context=9, data_dir=place).tokenizer.decode([0xE9]) == "\ufffd"
    with pytest.raises(DataError, match="character 1 of the text is 'b', which the vocabulary of 1 characters lacks"):
        CharacterTokens("a").encode(b"ab")
