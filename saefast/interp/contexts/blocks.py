"""The Unicode blocks of scripts (Blocks.txt of the Unicode Character Database, version 16)."""

import numpy as np

BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "armenian": ((0x530, 0x58F),),
    "hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "syriac": ((0x700, 0x74F), (0x860, 0x86F)),
    "devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "bengali": ((0x980, 0x9FF),),
    "gurmukhi": ((0xA00, 0xA7F),),
    "gujarati": ((0xA80, 0xAFF),),
    "odia": ((0xB00, 0xB7F),),
    "tamil": ((0xB80, 0xBFF),),
    "telugu": ((0xC00, 0xC7F),),
    "kannada": ((0xC80, 0xCFF),),
    "malayalam": ((0xD00, 0xD7F),),
    "sinhala": ((0xD80, 0xDFF),),
    "thai": ((0xE00, 0xE7F),),
    "lao": ((0xE80, 0xEFF),),
    "tibetan": ((0xF00, 0xFFF),),
    "burmese": ((0x1000, 0x109F),),
    "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF)),
    "khmer": ((0x1780, 0x17FF), (0x19E0, 0x19FF)),
    "mongolian": ((0x1800, 0x18AF),),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF65, 0xFF9F)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
    + ((0x20000, 0x323AF),),
}
SPACES = (*range(9, 14), 0x20, 0x85, 0xA0, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
SPACE = -2  # and the marks of direction, which nobody sees


def script_of(code: np.ndarray) -> np.ndarray:
    """[n] code points -> the number of the script in `BLOCKS`, [n] int16; -1: of another one, or none; SPACE: blank."""
    ranges = sorted((low, high, i) for i, blocks in enumerate(BLOCKS.values()) for low, high in blocks)
    low, high, number = (np.array(column, np.int64) for column in zip(*ranges, strict=True))
    at = np.maximum(np.searchsorted(low, code, side="right") - 1, 0)
    found = np.where((code >= low[at]) & (code <= high[at]), number[at], -1)
    return np.where(np.isin(code, SPACES), SPACE, found).astype(np.int16)
