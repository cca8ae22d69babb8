// A hash of the bits of rows, by which a copy made of them finds out that they have changed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace saefast {

// Of rows [n, D], as bits: 0 and -0 differ, and so do NaNs. Two chains of 32 bits in each of 16 lanes: a step is a
// bijection both of what came before and of what it takes in, so that one changed number always changes both chains of
// its lane; others are missed as often as 64 bits agree by chance.
std::uint64_t hash_rows(const float* rows, std::size_t n, std::size_t D, Isa isa);

}  // namespace saefast
