// What is recorded of each latent, from its code. Spec: `saefast.interp.records.select`, whose names these are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saefast {

// The code of some contexts, sorted by latent and then by slot. Slots count from first_slot on.
struct CodeBlock {
    std::int64_t first_slot, n_slots;
    const std::int64_t* offsets;  // [F + 1]
    const std::int32_t* slots;    // [N]
    const float* acts;            // [N]
};

struct RecordedText {
    const std::int32_t* contexts;  // [m, L]
    const std::uint8_t* encoded;   // [m, L]
    std::size_t m, L;
    std::vector<std::int32_t> separators;
    std::int64_t n_rows;

    std::int64_t n_slots() const { return static_cast<std::int64_t>(m * L); }
    bool separates(std::int32_t token) const {
        for (const std::int32_t one : separators) {
            if (one == token) return true;
        }
        return false;
    }
};

struct RecordNumbers {
    std::size_t n_top, n_intervals, per_interval, n_quantiles, per_quantile, n_random, n_inactive, n_bins;
    std::int64_t before, after;
    std::uint32_t seed;

    std::size_t examples() const {
        return n_top + n_intervals * per_interval + n_quantiles * per_quantile + n_random + n_inactive;
    }
};

constexpr std::size_t STATISTICS = 8;

struct Window {
    std::int64_t first, end;  // positions in the context
};

Window window_of(const RecordedText& text, const RecordNumbers& numbers, std::int64_t slot);

// Of the latents first to end - 1: statistics [n, STATISTICS], histogram [n, n_bins], slots and acts [n, examples].
// Returns a latent whose entries are not ascending slots of their block with positive activations, or -1.
std::int64_t select_records(const std::vector<CodeBlock>& blocks, std::int64_t first, std::int64_t end,
                            const RecordedText& text, const RecordNumbers& numbers, int threads, double* statistics,
                            std::int64_t* histogram, std::int64_t* slots, float* acts);

// For n examples: windows [n, 2], and documents [n] given the number of the first one of each context, [m].
void record_windows(const RecordedText& text, const RecordNumbers& numbers, const std::int64_t* first_document,
                    const std::int64_t* slots, std::size_t n, std::int32_t* windows, std::int64_t* documents);

// The entries of latents[i] in windows[i] of the context of slots[i]: how many, counts [n]; or, given where those of each
// example begin, offsets [n + 1], their places in the window and activations, at and acts [offsets[n]].
void window_counts(const std::vector<CodeBlock>& blocks, std::size_t L, const std::int32_t* latents,
                   const std::int64_t* slots, const std::int32_t* windows, std::size_t n, int threads,
                   std::int32_t* counts);
void window_acts(const std::vector<CodeBlock>& blocks, std::size_t L, const std::int32_t* latents,
                 const std::int64_t* slots, const std::int32_t* windows, std::size_t n, const std::int32_t* offsets,
                 int threads, std::int16_t* at, float* acts);

}  // namespace saefast
