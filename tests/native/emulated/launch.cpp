// The launches of csrc/update/update.cu on the host.

#include <cstdlib>

#include "kernel.h"

namespace saefast::update {
namespace {

std::string failed;

// Allocated for each block anew, full of NaN.
template <typename Body>
bool run_blocks(std::int64_t blocks, int threads, std::size_t bytes, const Body& body) {
    for (int block = 0; block < blocks; ++block) {
        auto* memory = static_cast<unsigned char*>(std::aligned_alloc(128, (bytes + 127) / 128 * 128));
        std::memset(memory, 0xFF, bytes);
        failed = Block(threads, memory, bytes, [&](int thread) { body(memory, thread, block); }).run();
        std::free(memory);
        if (!failed.empty()) return false;
    }
    return true;
}

template <bool SPLIT, bool INT8>
bool run_format(const Update& u) {
    const int threads = warps_of(u.D) * WARP;
    const auto bytes = static_cast<std::size_t>(Shared::FIXED + u.stages * (4 * u.D + Shared::OF_STAGE));
    const std::int64_t windows = (u.N + u.window - 1) / u.window;
    return run_blocks(windows < u.blocks ? windows : u.blocks, threads, bytes,
                      [&](unsigned char* memory, int thread, int block) {
                          run_block<VECTORS, SPLIT, INT8, true>(u, memory, thread, threads, block);
                      }) &&
           run_blocks(u.blocks, threads, bytes, [&](unsigned char* memory, int thread, int block) {
               run_block<VECTORS, SPLIT, INT8, false>(u, memory, thread, threads, block);
           });
}

bool run(const Update& u) {
    const bool split = u.dec.low != nullptr, int8 = u.dec.scales != nullptr;
    return (split ? int8 ? run_format<true, true>(u) : run_format<true, false>(u)
                  : int8 ? run_format<false, true>(u) : run_format<false, false>(u)) &&
           run_blocks(u.D / COLUMNS, COLUMNS * LANES, sizeof(float) * COLUMNS * (LANES + 1),
                      [&](unsigned char* memory, int thread, int block) {
                          finish_block(u, reinterpret_cast<float*>(memory), thread, block);
                      });
}

}  // namespace

// The stream is the seed of the dice.
const char* launch(const Update& update, void* stream) {
    Block::dice = 2 * reinterpret_cast<std::uintptr_t>(stream) + 1;
    for (int i = 0; i < 20; ++i) Block::dice = Block::dice * 6364136223846793005u + 1442695040888963407u;
    return run(update) ? nullptr : failed.c_str();
}

}  // namespace saefast::update

// Without the binding, of which a process can only load one.
extern "C" __attribute__((visibility("default"))) const char* launch_update(const saefast::update::Update* update,
                                                                            void* stream) {
    return saefast::update::launch(*update, stream);
}
