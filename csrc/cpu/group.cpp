#include "group.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "parallel.h"

namespace saefast {

using std::int32_t;
using std::size_t;
constexpr size_t LATENTS = 512;  // in an item of work

// Each part of the tokens counts its own entries, so that all of them can be placed at once, in the order of one thread.
void group_by_latent(const Code& code, size_t B, size_t F, size_t N, int threads, int32_t* offsets, int32_t* pairs,
                     int32_t* tokens) {
    // Not so many parts that there are more counts than entries, or that a part is done before its thread is there.
    const size_t least = std::max<size_t>(F, 1 << 15);  // entries
    const size_t parts = std::clamp(code.begin(B) / least, size_t{1}, static_cast<size_t>(threads));
    std::vector<int32_t> places(parts * F, 0);
    const auto each = [&](size_t part, const auto& work) {
        int32_t* const own = places.data() + part * F;
        for (size_t b = B * part / parts; b < B * (part + 1) / parts; ++b) {
            for (size_t i = code.begin(b); i < code.begin(b + 1); ++i) {
                if (code.acts[i] > 0) work(own[code.indices[i]], b, i);
            }
        }
    };
    parallel_for(parts, threads, [&](size_t part, size_t) {
        each(part, [](int32_t& count, size_t, size_t) { ++count; });
    });
    int32_t place = 0;
    for (size_t f = 0; f < F; ++f) {
        offsets[f] = place;
        for (size_t part = 0; part < parts; ++part) place += std::exchange(places[part * F + f], place);
    }
    offsets[F] = place;
    parallel_for(parts, threads, [&](size_t part, size_t) {
        each(part, [&](int32_t& next, size_t b, size_t i) {
            const auto to = static_cast<size_t>(next++);
            pairs[to] = static_cast<int32_t>(i);
            tokens[to] = static_cast<int32_t>(b);
        });
    });
    std::fill(pairs + place, pairs + N, 0);
    std::fill(tokens + place, tokens + N, 0);
}

void sort_code(const Code& code, const int32_t* slots_of_rows, size_t B, size_t F, int threads, std::int64_t* offsets,
               int32_t* slots, float* sorted_acts) {
    const size_t end = code.begin(B);
    std::fill_n(offsets, F + 1, 0);
    for (size_t i = 0; i < end; ++i) ++offsets[code.indices[i] + 1];
    std::partial_sum(offsets, offsets + F + 1, offsets);
    std::vector<std::int64_t> next(offsets, offsets + F);
    // Each thread goes through all entries and places those of its own latents: nothing is shared, and the order stays.
    const size_t parts = static_cast<size_t>(threads), each = chunks_of(F, parts);
    parallel_for(parts, threads, [&](size_t part, size_t) {
        const size_t first = part * each;
        for (size_t b = 0; b < B; ++b) {
            const int32_t slot = slots_of_rows[b];
            for (size_t i = code.begin(b); i < code.begin(b + 1); ++i) {
                const auto latent = static_cast<size_t>(code.indices[i]);
                if (latent - first >= each) continue;
                const auto place = static_cast<size_t>(next[latent]++);
                slots[place] = slot;
                sorted_acts[place] = code.acts[i];
            }
        }
    });
}

void sum_entries(const int32_t* offsets, const int32_t* pairs, const float* per_pair, size_t F, int threads,
                 float* sums) {
    parallel_for((F + LATENTS - 1) / LATENTS, threads, [&](size_t item, size_t) {
        for (size_t f = item * LATENTS; f < std::min(F, (item + 1) * LATENTS); ++f) {
            double total = 0;
            for (int32_t i = offsets[f]; i < offsets[f + 1]; ++i) total += per_pair[pairs[i]];
            sums[f] = static_cast<float>(total);
        }
    });
}

}  // namespace saefast
