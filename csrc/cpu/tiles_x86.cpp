#include "tiles.h"

#ifdef SAEFAST_X86
#include <cstring>

namespace saefast {
namespace {

using std::int16_t;
using std::int32_t;
using std::int8_t;
using std::size_t;
using std::uint8_t;

constexpr size_t ROWS = 6;  // 6 x COLUMNS registers of sums, COLUMNS of weights, one of a row
constexpr size_t QUADS = 4;
constexpr int LEVELS = 81;
static_assert(4 * QUADS == LANES, "`Levels::sum` is of halves of a vector");
using Run = void (*)(const TileRows&, size_t, const uint8_t*, size_t, const float*, const float*);

namespace vnni {
#define ATTRIBUTE SAEFAST_VNNI
#define BYTES 64
#define COLUMNS 4
#define DOT "vpdpbusd"
#include "tiles_x86.h"
}  // namespace vnni

namespace avx512 {
#define ATTRIBUTE SAEFAST_AVX512
#define BYTES 64
#define COLUMNS 2
#include "tiles_x86.h"
}  // namespace avx512

namespace avxvnni {
#define ATTRIBUTE SAEFAST_AVX2
#define BYTES 32
#define COLUMNS 2
#define DOT "%{vex%} vpdpbusd"
#include "tiles_x86.h"
}  // namespace avxvnni

namespace avx2 {
#define ATTRIBUTE SAEFAST_AVX2
#define BYTES 32
#define COLUMNS 2
#include "tiles_x86.h"
}  // namespace avx2

constexpr Levels X{127, 32767 / LEVELS}, W{LEVELS};
constexpr Tiles VNNI{{127}, {127}, 128, ROWS, 64, pack_quads, vnni::RUN};
constexpr Tiles AVX512{X, W, LEVELS, ROWS, 32, pack_quads, avx512::RUN};
constexpr Tiles AVXVNNI{{127}, {127}, 128, ROWS, 16, pack_quads, avxvnni::RUN};
constexpr Tiles AVX2{X, W, LEVELS, ROWS, 16, pack_quads, avx2::RUN};

}  // namespace

const Tiles& tiles_x86(Isa isa) {
    return isa == Isa::vnni ? VNNI : isa == Isa::avx512 ? AVX512 : isa == Isa::avxvnni ? AVXVNNI : AVX2;
}

}  // namespace saefast
#endif
