"""The Triton backend: the functions of `saefast.reference`, one kernel file each, for NVIDIA GPUs.

Imported as `saefast.triton_kernels`. Depends on torch and triton only: tensors and numbers in, tensors out.
"""

from saefast.triton_kernels.decode import decode

__all__ = ["decode"]
