"""Tokenizers of pretrained models."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedshare.data.files import find
from fedshare.data.sources import STORIES260K
from fedshare.errors import UserError, brief, first_line
from fedshare.machine.extras import importing
from fedshare.weights import locate

BOS, BYTES = 1, 3  # llama2.c's tokens: 0 is unknown, 1 begins a text, 2 ends it, then come the 256 bytes, then pieces
PIECES = BYTES + 256


@runtime_checkable
class Tokenizer(Protocol):
    vocabulary: int  # tokens are at least 0 and below this

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a whole text, with the special tokens that the model expects around it."""


def fitting(data: str, tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """Return the tokenizer; raise `UserError` if it has tokens that are not below `vocabulary`."""
    if tokenizer.vocabulary > vocabulary:
        raise UserError(f"{data}: vocabulary is {vocabulary}, and the tokenizer has {tokenizer.vocabulary} tokens")
    return tokenizer


class Llama2cTokenizer:
    """Byte pair encoding with the scores of llama2.c's `tokenizer.bin` or `tok512.bin`: the best pair merges first.

    A text begins with `BOS` and an added space. A character that is not a piece becomes its UTF-8 bytes. `path` is a
    path, or a name below the data folder's ``weights``; ``stories260K/tok512.bin`` is downloaded if it is neither,
    together with its model.
    """

    def __init__(self, path: str) -> None:
        folder, name = STORIES260K.folder.removeprefix("weights/"), "tok512.bin"
        published = path == f"{folder}/{name}" and not Path(path).exists()
        self._pieces, scores = read_pieces(find(STORIES260K)[name] if published else locate(path, "tokenizer.path"))
        self.vocabulary = len(self._pieces)
        ranked = zip(self._pieces[PIECES:], range(PIECES, self.vocabulary), scores[PIECES:], strict=True)
        self._known: dict[str, tuple[int, float]] = {}
        for piece, token, score in ranked:
            self._known.setdefault(piece.decode("utf-8", "replace"), (token, score))
        # No merge spans two characters that are adjacent in no piece, so the text may be split between them.
        self._bonds = {pair for piece in self._known for pair in pairwise(piece)}
        self._seen: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        tokens = [BOS]
        text = f" {text}" if text else ""
        cuts = [0, *(place for place, pair in enumerate(pairwise(text), 1) if pair not in self._bonds), len(text)]
        for start, end in pairwise(cuts):
            word = text[start:end]
            if word not in self._seen:
                self._seen[word] = self._merge(word)
            tokens += self._seen[word]
        return tokens

    def _merge(self, word: str) -> list[int]:
        parts = list(word)
        while True:
            pairs = [self._known.get(a + b, (0, float("-inf")))[1] for a, b in pairwise(parts)]
            best = max(pairs, default=float("-inf"))
            if best == float("-inf"):
                break
            place = pairs.index(best)  # the leftmost of equally good pairs
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        tokens: list[int] = []
        for part in parts:
            tokens += [self._known[part][0]] if part in self._known else [BYTES + byte for byte in part.encode()]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Return the text that `encode` had; invalid UTF-8, as after a cut, becomes the replacement character."""
        parts = [bytes([t - BYTES]) if t < PIECES else self._pieces[t] for t in tokens if t >= BYTES]
        return b"".join(parts).decode("utf-8", "replace").removeprefix(" ")


def read_pieces(path: Path) -> tuple[list[bytes], list[float]]:
    """Return each token's bytes and score. File: int32 longest length; per token float32, int32 length, bytes."""
    if not path.is_file():
        raise UserError(f"{path}: is a folder; llama2.c's tokenizer is one file, such as tok512.bin")
    content = path.read_bytes()
    pieces, scores, place = list[bytes](), list[float](), 4
    longest = int.from_bytes(content[:4], "little", signed=True)
    while place + 8 <= len(content):
        score, length = struct.unpack_from("<fi", content, place)
        place += 8 + length
        if not 0 <= length <= longest or score != score:
            break
        pieces.append(content[place - length : place])
        scores.append(score)
    if place != len(content) or len(pieces) <= PIECES:
        raise UserError(f"{path}: damaged, or no tokenizer of llama2.c")
    return pieces, scores


class HuggingFaceTokenizer:
    """Any tokenizer of Hugging Face's transformers: a local folder, or a name on the hub.

    A text has the special tokens that its model expects, such as BERT's [CLS] and [SEP]; a data set that cuts a long
    text also cuts the last of them.
    """

    def __init__(self, path: str) -> None:
        with importing("transformers", "HuggingFaceTokenizer"):
            from transformers import AutoTokenizer
        folder = Path(path).expanduser()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder) if folder.is_dir() else path, local_files_only=folder.is_dir()
            )
        except Exception as error:  # many libraries raise here
            said = brief(first_line(error))
            raise UserError(
                f"HuggingFaceTokenizer: no tokenizer in a folder or on the hub at {path}: {said}"
            ) from error
        self.vocabulary: int = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, verbose=False)
        return tokens
