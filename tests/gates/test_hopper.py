"""What `hopper` is to notice in machine code, planted: in a few lines written by hand, and in kernels that are compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from tests.gates import hopper, sass

ROOT = Path(__file__).parents[2]


def line(address: int, text: str, stall: int = 1, sets: int = 7, waits: int = 0) -> str:
    """As cuobjdump prints it; waits: a bit for each scoreboard."""
    encoding = (stall | sets << 5 | waits << 11) << 41
    return f"        /*{address:04x}*/  {text} ;  /* 0x{0:016x} */\n      /* 0x{encoding:016x} */\n"


def listing(*lines: tuple) -> list[sass.Instruction]:
    return sass.parse("".join(line(16 * i, *parts) for i, parts in enumerate(lines)))


def test_an_instruction_is_read_with_what_it_sets_and_waits_for() -> None:
    load, add, branch = listing(
        ("LDG.E.EF.128 R4, desc[UR4][R2.64]", 4, 3),
        ("@!P0 FADD R5, R4, R4", 2, 7, 0b1000),
        ("@P1 BRA 0x0", 5),
    )
    assert (load.kind, load.sets, load.stall, load.waits) == ("LDG", 3, 4, ())
    assert (add.predicate, add.name, add.waits) == ("!P0", "FADD", (3,))
    assert branch.target == 0


LOOP = (
    ("MOV R1, RZ", 2),
    ("LDG.E R4, desc[UR4][R2.64]", 1, 0),  # the loop begins
    ("LDG.E.64 R6, desc[UR4][R4.64]", 1, 1, 0b1),  # the address is what the first load brought
    ("FADD R8, R6, R8", 1, 7, 0b10),
    ("@P0 BRA 0x10", 5),
    ("EXIT", 5),
)


def test_loads_that_wait_for_each_other_are_counted() -> None:
    code = listing(*LOOP)
    (loop,) = sass.loops(code)
    assert hopper.phases(code, loop)[0] == 2
    both_at_once = listing(*LOOP[:2], ("LDG.E.64 R6, desc[UR4][R4.64]", 1, 1), *LOOP[3:])
    assert hopper.phases(both_at_once, loop)[0] == 1
    # planted: one more load, of which the address is what the second brought
    worse = listing(*LOOP[:3], ("LDG.E R6, desc[UR4][R6.64]", 1, 1, 0b10), *LOOP[3:])
    assert hopper.phases(worse, sass.loops(worse)[0])[0] == 3


def copies(may_be_open: int) -> list[sass.Instruction]:
    return listing(
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", 1),
        ("LDGDEPBAR", 1, 0),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", 1),
        ("LDGDEPBAR", 1, 0),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", 1),
        ("LDGDEPBAR", 1, 0),
        (f"DEPBAR.LE SB0, {may_be_open:#x}", 1),
        ("@P0 BRA 0x40", 5),
        ("EXIT", 5),
    )


@pytest.mark.parametrize(("may_be_open", "expected"), [(0, 1), (1, 1 / 2), (2, 1 / 3)])
def test_copies_that_were_asked_for_earlier_cost_less(may_be_open: int, expected: float) -> None:
    code = copies(may_be_open)
    assert hopper.phases(code, sass.loops(code)[0])[0] == pytest.approx(expected, abs=0.06)
    figures = hopper.sm90_figures("decode_kernel", code, "tt.num_stages = 3 : i32")
    assert (figures["cp_async"], figures["ahead"]) == (1, may_be_open)
    assert bool(hopper.complaints("decode_kernel A", figures)) == (may_be_open < 2)


def test_more_programs_than_run_at_once_are_noticed() -> None:
    """As `update_config` had it: 14 warps by their registers, where only fours of them are given out."""
    figures = hopper.sm90_occupancy("update_kernel", 2, 144, 16, 132 * 7)
    assert figures == {"warps": 2, "blocks": 6, "programs": 132 * 7}
    assert "a second round" in hopper.complaints("update_kernel small", figures)[0]
    assert hopper.complaints("update_kernel small", {**figures, "programs": 132 * 6}) == []
    assert (
        hopper.complaints("update_kernel tiny", {**figures, "programs": 70}) == []
    )  # as many as there are rows
    fewer: hopper.Figures = {"blocks": 6, "programs": 264}
    assert "792 run at once" in hopper.complaints("update_kernel", fewer)[0]
    assert hopper.complaints("update_kernel given A fp32 sm_90", fewer) == []  # LEFT says why


@pytest.mark.slow
def test_faults_planted_in_kernels_are_found() -> None:
    """Compiled in a process of its own: here kernels are for the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gates.planted"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)

    def said(name: str) -> str:
        return "\n".join(hopper.complaints(name, found[name]))

    assert said("decode_kernel, right") == ""
    assert found["decode_kernel, right"]["phases"] < 1
    assert "no cp.async" in said("decode_kernel, not ahead")
    more = found["decode_kernel, a list more"]["phases"] - found["decode_kernel, not ahead"]["phases"]
    assert more == 1
    assert found["gemm_encode_kernel, right"]["products_ahead"] == 1
    twice = found["gemm_encode_kernel, epilogue twice"]["epilogue"]
    assert twice > 1.5 * found["gemm_encode_kernel, right"]["epilogue"]
    limit = {"gemm_encode_kernel": 1.2 * found["gemm_encode_kernel, right"]["epilogue"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "MOST_EPILOGUE", limit)
        assert "instructions of epilogue" in said("gemm_encode_kernel, epilogue twice")
        assert "epilogue" not in said("gemm_encode_kernel, right")
    assert "a second round" in said("update_kernel, too many")
    assert "132 programs where" in said("update_kernel, too few")
