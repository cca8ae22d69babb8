"""The place of each number of a step in `numbers_ptr`. Made of `saefast.reference.Numbers` by `python -m tests.gates.generated --write`: do not edit."""

import triton.language as tl

LR = tl.constexpr(0)
LR_BIAS = tl.constexpr(1)
EPS = tl.constexpr(2)
EPS_BIAS = tl.constexpr(3)
BETA1 = tl.constexpr(4)
BETA1_REST = tl.constexpr(5)
BETA2 = tl.constexpr(6)
BETA2_REST = tl.constexpr(7)
CORRECTION1 = tl.constexpr(8)
CORRECTION2 = tl.constexpr(9)
L1 = tl.constexpr(10)
BIAS_NORM = tl.constexpr(11)
LR_DEC = tl.constexpr(12)
LR_B_DEC = tl.constexpr(13)
UNIT = tl.constexpr(14)
TIED = tl.constexpr(15)
