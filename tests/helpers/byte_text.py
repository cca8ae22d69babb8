"""Texts of tokens that are pieces of bytes, for what reads a vocabulary but no tokenizer."""

import numpy as np

from saefast.interp.records.text import Text


class Pieces:
    """A vocabulary of these pieces; the first one ends a document and stands for no text."""

    def __init__(self, pieces):
        self.raw = [b"<end>", *pieces]
        self.special = {0}

    def __len__(self):
        return len(self.raw)


def cut(passages, length, size=3):
    """Bytes of passages -> (text, vocabulary): pieces of 1 to `size` bytes by a fixed draw, one context of `length` tokens for
    each passage, which is cut or filled with the token that ends a document."""
    generator = np.random.default_rng(0)
    tokens, pieces = [], {}
    for passage in passages:
        row, at = [], 0
        while at < len(passage) and len(row) < length:
            piece = passage[at : at + int(generator.integers(1, size + 1))]
            row.append(pieces.setdefault(piece, len(pieces) + 1))
            at += len(piece)
        tokens.append(row + [0] * (length - len(row)))
    return text_of(tokens), Pieces(pieces)


def text_of(tokens, separators=(0,)):
    contexts = np.array(tokens, np.int32)
    return Text(contexts, contexts != 0, separators)
