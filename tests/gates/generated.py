"""The numbers of a step, as the kernels read them: their places for Triton and their names for C++, both made of
`saefast.reference.Numbers`.

    python -m tests.gates.generated            whether the two files are as they would be made
    python -m tests.gates.generated --write    make them
"""

import sys
from pathlib import Path

from saefast.reference import Numbers

ROOT = Path(__file__).parents[2]
MADE = "Made of `saefast.reference.Numbers` by `python -m tests.gates.generated --write`: do not edit."


def for_triton() -> str:
    places = "".join(f"{name.upper()} = tl.constexpr({i})\n" for i, name in enumerate(Numbers._fields))
    return f'"""The place of each number of a step in `numbers_ptr`. {MADE}"""\n\nimport triton.language as tl\n\n{places}'


def for_cpp() -> str:
    fields = "".join(f"    float {name};\n" for name in Numbers._fields)
    values = "".join(f"        static_cast<float>(numbers[{i}]),\n" for i in range(len(Numbers._fields)))
    return f"""// The numbers of one step. {MADE}
#pragma once

#include <array>
#include <cstddef>

namespace saefast {{

struct Numbers {{
{fields}}};

constexpr std::size_t N_NUMBERS = {len(Numbers._fields)};

inline Numbers named_numbers(const std::array<double, N_NUMBERS>& numbers) {{
    return {{
{values}    }};
}}

}}  // namespace saefast
"""


FILES = {ROOT / "triton_kernels" / "numbers.py": for_triton, ROOT / "csrc" / "cpu" / "numbers.h": for_cpp}


def stale() -> list[str]:
    """The files that are not as they would be made."""
    return [path.name for path, make in FILES.items() if not path.exists() or path.read_text() != make()]


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path, make in FILES.items():
            path.write_text(make())
    sys.exit(f"stale: {', '.join(stale())}" if stale() else 0)
