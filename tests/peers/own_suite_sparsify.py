"""sparsify's own tests, of its encoder and decoder, with its operators or with ours in their place:

    python -m tests.peers.own_suite_sparsify CHECKOUT [--ours]

in an environment with the package. They ask for a GPU and for 8192 tokens and 131072 latents; here "cuda" is the CPU
(its kernel runs in Triton's interpreter), and the sizes are a sixteenth.
"""

import argparse
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch.overrides import TorchFunctionMode

SMALLER = {8192: 512, 131_072: 8192}


class OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
            args = [SMALLER.get(arg, arg) for arg in args]
        return func(*args, **kwargs)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", help="a clone of github.com/EleutherAI/sparsify")
    parser.add_argument("--ours", action="store_true", help="replace the functions under test")
    args = parser.parse_args()
    import sparsify.fused_encoder
    import sparsify.utils

    if args.ours:
        from saefast.adapters import sparsify_ops

        sparsify.fused_encoder.fused_encoder = sparsify_ops.fused_encoder
        sparsify.utils.triton_decode = sparsify_ops.decoder_impl
    torch.cuda.synchronize = lambda: None
    with OnTheCpu():
        return pytest.main(
            [f"{args.checkout}/tests", "-q", "-p", "no:cacheprovider", "--rootdir", args.checkout]
        )


if __name__ == "__main__":
    sys.exit(main())
