"""Tokenizers, and the data sets in their tokens."""

import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_data import PLAY, write

from fedshare import data
from fedshare.data.sources import TINY_SHAKESPEARE
from fedshare.data.tokenizer import HuggingFaceTokenizer, Llama2cTokenizer, Tokenizer
from fedshare.errors import UserError
from optional import extra

BYTES = [f"<0x{byte:02X}>".encode() for byte in range(256)]
SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *BYTES]
# Scores fall in this order, as sentencepiece gives them; the first piece is token 259.
PIECES = [" a", "ab", "bc", " ab", "aa", "é", " ", *"abcdefghijklmnopqrstuvwxyz,."]
PUBLISHED = "stories260K/tok512.bin"


def content(pieces: list[str] = PIECES) -> bytes:
    entries = [(piece, 0.0) for piece in SPECIAL]
    entries += [(piece.encode(), -float(rank)) for rank, piece in enumerate(pieces)]
    longest = max(len(piece) for piece, _ in entries)
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in entries
    )


def token(piece: str) -> int:
    return 259 + PIECES.index(piece)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Llama2cTokenizer:
    return Llama2cTokenizer(str(write(tmp_path / "tok.bin", content())))


def published() -> Llama2cTokenizer:
    if not (Path(os.environ.get("FEDSHARE_DATA", "/nonexistent")) / "weights" / PUBLISHED).is_file():
        pytest.skip(f"set FEDSHARE_DATA to the folder that has weights/{PUBLISHED}")
    return Llama2cTokenizer(PUBLISHED)


# llama2.c's


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("c", [" ", "c"]),
        ("abc", [" a", "bc"]),  # " a" is the best; then "bc", for " ab" has no "b" any more
        ("babc", [" ", "b", "ab", "c"]),  # "ab" comes before "bc"
        ("baaa", [" ", "b", "aa", "a"]),  # the leftmost of equals
        ("ab", [" ab"]),
        ("c ab ab", [" ", "c", " ab", " ab"]),
        ("cé", [" ", "c", "é"]),
    ],
)
def test_the_best_neighbours_merge_first(text: str, pieces: list[str], tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.encode(text) == [1, *map(token, pieces)]
    assert tokenizer.encode(text) == [1, *map(token, pieces)], "nothing of a text remains"
    assert tokenizer.vocabulary == 259 + len(PIECES)
    assert isinstance(tokenizer, Tokenizer)


def test_what_is_no_piece_is_its_bytes(tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.encode("a\nÜ") == [1, token(" a"), 3 + 0x0A, 3 + 0xC3, 3 + 0x9C]
    assert tokenizer.encode("<s>")[1:] == [token(" "), 3 + ord("<"), token("s"), 3 + ord(">")]


@pytest.mark.parametrize("text", ["", " ", "  two", "abcab, ab.\n\tÜber 漢字 \U0001f600", "<unk><s>\0"])
def test_decode_undoes_encode(text: str, tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_character_is_shown_as_such(tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("aÜ")[:-1]) == "a\ufffd"


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x05",
        content()[:-1],
        content() + b"\0",
        content()[: 4 + 3000],
        content()[:8] + struct.pack("<i", -1) + content()[12:],
        content()[:8] + struct.pack("<i", 2**31 - 1) + content()[12:],
        content()[:4] + struct.pack("<f", float("nan")) + content()[8:],
        content([]),
        b"<html>Not found</html>" * 99,
    ],
)
def test_damaged_and_other_files(damaged: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "tok.bin", damaged)
    with pytest.raises(UserError, match=r"damaged, or no tokenizer of llama2\.c") as raised:
        Llama2cTokenizer(str(path))
    assert str(raised.value).startswith(f"{path}: ")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        Llama2cTokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"^tokenizer\.path=none\.bin: there is no "):
        Llama2cTokenizer("none.bin")


def uncut(tokenizer: Llama2cTokenizer, text: str) -> list[str]:
    """The pieces of a whole text by the rule itself: the best pair of all, again and again."""
    parts = list(f" {text}")
    while True:
        pairs = [tokenizer._known.get(a + b, (0, float("-inf")))[1] for a, b in pairwise(parts)]
        if (best := max(pairs)) == float("-inf"):
            return parts
        place = pairs.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def test_published_tokenizer_gives_what_its_rule_says() -> None:
    tokenizer = published()
    text = 'Once upon a time, Lily said, "I want to play, too!"  They were    happy.\nThe end: née Ü 1 ~.'
    tokens = tokenizer.encode(text)
    assert tokenizer.vocabulary == 512
    assert tokenizer.decode(tokens) == text
    assert tokens[:6] == [1, 403, 407, 261, 378, 432]
    assert [tokenizer.decode([1, t]) for t in tokens[1:4]] == ["Once", "upon", "a"]
    parts = [part for part in uncut(tokenizer, text) if part in tokenizer._known]
    assert [t for t in tokens if t >= 259] == [tokenizer._known[part][0] for part in parts]


# Hugging Face's


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What transformers saves of a tokenizer that knows three words and puts [CLS] before them."""
    transformers = extra("transformers")
    from tokenizers import Tokenizer as Made
    from tokenizers import models, pre_tokenizers, processors

    made = Made(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "good": 3, "bad": 4, "film": 5}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_hugging_face_tokenizer_in_a_folder(folder: Path) -> None:
    tokenizer = HuggingFaceTokenizer(str(folder))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocabulary == 6
    assert tokenizer.encode("good films film") == [2, 3, 1, 5]


def test_hugging_face_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (str(tmp_path), "nobody/has-this"):
        with pytest.raises(UserError, match=f"no tokenizer in a folder or on the hub at {path}: ") as raised:
            HuggingFaceTokenizer(path)
        assert "\n" not in str(raised.value)


# Data sets


def test_sentences_in_a_tokenizer_s_tokens(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "dev"):
        write(tmp_path / f"SST-2/{part}.tsv", "sentence\tlabel\ngood film\t1\nbad bad bad film\t0\n")
    tokenizer = HuggingFaceTokenizer(str(folder))
    dataset = data.sst2(tmp_path, vocabulary=6, length=4, tokenizer=tokenizer)
    assert dataset.pool.x.tolist() == [[2, 3, 5, 0], [2, 4, 4, 4]] * 2
    assert dataset.pool.y.tolist() == [1, 0] * 2
    with pytest.raises(UserError, match="sst2: vocabulary is 5, and the tokenizer has 6 tokens"):
        data.sst2(tmp_path, vocabulary=5, length=4, tokenizer=tokenizer)


def test_all_sentences_take_a_tokenizer(tokenizer: Llama2cTokenizer, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"trees/{part}.txt", "(3 ab)\n(1 (2 c) (1 ab))\n")
    trees = data.sst_trees(tmp_path, vocabulary=300, length=4, tokenizer=tokenizer)
    assert trees.pool.x[1].tolist() == [1, token(" "), token("c"), token(" ab")]
    for kind in ("pos", "neg"):
        write(tmp_path / "mr-rt-polarity" / f"rt-polarity.{kind}", "ab\n" * 20)
    review = data.movie_review(tmp_path, vocabulary=300, length=3, tokenizer=tokenizer)
    assert review.pool.x.tolist() == [[1, token(" ab"), 0]] * 40


def test_speakers_are_those_of_shakespeare(tokenizer: Llama2cTokenizer, tmp_path: Path) -> None:
    write(tmp_path / "tiny-shakespeare/input.txt", PLAY)
    dataset = data.shakespeare_tokens(tmp_path, tokenizer=tokenizer, vocabulary=300, length=7)
    assert dataset.owner is not None
    assert (dataset.name, dataset.classes, dataset.shape, dataset.labels) == ("shakespeare_tokens", 300, (7,), None)
    owner, train = torch.from_numpy(dataset.owner), torch.arange(len(dataset.pool)) < dataset.train_size

    def spoken(rows: torch.Tensor) -> str:
        x, y = dataset.pool.x[rows], dataset.pool.y[rows]
        kept = y != -100
        assert int(x[0, 0]) == 1, "a text begins once, and nothing is asked about that"
        assert (x[~kept] == 0).all()
        assert torch.equal(x.flatten()[1:][kept.flatten()[1:]], y.flatten()[:-1][kept.flatten()[1:]])
        return tokenizer.decode(y[kept].tolist())

    first = "Before we proceed any further, hear me speak.\nYou are all resolved:\nrather to die?\nOne.\n"
    assert spoken(train & (owner == 0)) == first
    assert spoken(~train & (owner == 0)) == "Two.\n"
    assert spoken(train & (owner == 1)) == "Speak, speak.\n"
    assert int((~train & (owner == 1)).sum()) == 0


def test_arguments_that_make_no_text(tokenizer: Llama2cTokenizer, tmp_path: Path) -> None:
    write(tmp_path / "tiny-shakespeare/input.txt", PLAY)
    with pytest.raises(UserError, match=r"shakespeare_tokens: vocabulary is 66, and the tokenizer has \d+ tokens"):
        data.shakespeare_tokens(tmp_path, tokenizer=tokenizer, vocabulary=66, length=7)
    with pytest.raises(UserError, match="shakespeare_tokens: length is 0, it must be at least 1"):
        data.shakespeare_tokens(tmp_path, tokenizer=tokenizer, vocabulary=300, length=0)


def test_published_speakers() -> None:
    tokenizer = published()
    if not (Path(os.environ["FEDSHARE_DATA"]) / TINY_SHAKESPEARE.folder / "input.txt").is_file():
        pytest.skip(f"no {TINY_SHAKESPEARE.folder} in FEDSHARE_DATA")
    dataset = data.shakespeare_tokens(tokenizer=tokenizer, vocabulary=512, length=64)
    assert dataset.owner is not None
    train, test = dataset.owner[: dataset.train_size], dataset.owner[dataset.train_size :]
    assert (len(train), len(test)) == (7817, 1981)
    assert set(train) == set(range(299))
    assert set(test) < set(train)
    assert dataset.pool.y[dataset.pool.y != -100].min() > 1
    assert dataset.pool.x.max() < 512
