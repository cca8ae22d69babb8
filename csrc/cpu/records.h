// Statistics and examples of latents from their sorted code. Spec: saefast/interp/records/select.py, bit for bit but for
// the sums of the statistics. A slot is context * L + position of a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace saefast {

// The code of some contexts, sorted by latent and then by slot: entries offsets[f] to offsets[f + 1] are those of f.
struct CodeBlock {
    std::int64_t first_slot;
    const std::int64_t* offsets;
    const std::int32_t* slots;  // from first_slot on
    const float* acts;
};

struct TextShape {
    const std::uint8_t* ends;     // [m, L], 1 where a document ends
    const std::uint8_t* encoded;  // [m, L], 1 where a token has a row
    std::size_t m, L, n_rows;
};

struct Window {
    std::size_t before, after;
};

// What saefast.config.records.RecordsConfig says.
struct Wanted {
    std::size_t n_top, n_intervals, per_interval, n_quantiles, per_quantile, n_random, n_inactive, n_bins;
    Window window;
    std::uint32_t seed;
    std::size_t examples() const {
        return n_top + n_intervals * per_interval + n_quantiles * per_quantile + n_random + n_inactive;
    }
};
constexpr std::size_t STATISTICS = 8;  // of a latent

struct SelectedOut {
    double* statistics;       // [n, STATISTICS]
    std::int64_t* histogram;  // [n, n_bins]
    std::int64_t* slots;      // [n, examples()]
    float* acts;              // [n, examples()]
};

// Of the latents [first, first + n). -1, or the first latent whose code is none: slots that do not rise or are not in the
// text, activations that are not positive numbers. Beside the outputs it takes 8 bytes for each context and thread.
std::int64_t select_examples(const std::vector<CodeBlock>& blocks, std::size_t first, std::size_t n, const TextShape& text,
                             const Wanted& wanted, int threads, const SelectedOut& out);

// windows [n, 2]: first position and end of the window around each slot, in its context and its document.
void token_windows(const std::int64_t* slots, std::size_t n, const TextShape& text, Window window, std::int32_t* windows);

// documents [n]: of each slot, from that in which its context begins.
void token_documents(const std::int64_t* slots, std::size_t n, const TextShape& text, const std::int64_t* first_document,
                     std::int64_t* documents);

// The places in a block of the entries of a latent in some slots.
struct Span {
    const CodeBlock* block;
    std::int64_t begin, end;
};
Span entries_in(const std::vector<CodeBlock>& blocks, std::size_t latent, std::int64_t begin, std::int64_t end);

}  // namespace saefast
