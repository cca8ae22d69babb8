"""What the products of the CPU engine are made of on this processor, in words."""

import os
import platform
import sys

BYTES_BY = {  # of the instruction sets of the C++ extension
    "vnni": "vpdpbusd of AVX-512 VNNI",
    "avx512": "vpmaddubsw of AVX-512",
    "avxvnni": "vpdpbusd of AVX-VNNI",
    "avx2": "vpmaddubsw of AVX2",
    "i8mm": "smmla of Arm's i8mm",
    "dotprod": "sdot of Arm's dot product",
}
APPLE = "Accelerate's, by the matrix unit of Apple's processors"


def native_isas() -> list[str] | None:
    """What the C++ extension can use on this processor; None if it is not built."""
    try:
        import saefast._C
    except ImportError:
        return None
    return list(saefast._C.isas())


def native_encoder() -> str | None:
    """How the encoder of the C++ extension multiplies on this processor, in words; None if it is not built."""
    if native_isas() is None:
        return None
    isa = screens()
    if isa is None:
        return f"torch's product: {why_no_bytes()}"
    return f"bytes first, by {BYTES_BY[isa]}, then in fp32 what their bounds leave"


def screens() -> str | None:
    """The instructions by which the encoder of the C++ extension, which is built, multiplies bytes."""
    from saefast.native import encode

    return encode.screens()


def why_no_bytes() -> str:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return APPLE
    if limit := os.environ.get("SAEFAST_ISA"):
        return f"SAEFAST_ISA={limit} leaves no instruction that multiplies bytes"
    return f"this processor has no instruction that multiplies bytes ({', '.join(BYTES_BY.values())})"
