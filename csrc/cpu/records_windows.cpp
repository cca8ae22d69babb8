// The text around an example, and what its latent does there.
#include <algorithm>

#include "parallel.h"
#include "records.h"

namespace saefast {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;

// The entries of a latent in the window of an example: the block they are in, from and to which.
struct Span {
    const CodeBlock* block;
    int64_t base;  // the slot of the first token of the window, in the block
    const int32_t *first, *end;
};

Span span_of(const std::vector<CodeBlock>& blocks, int64_t L, int64_t latent, int64_t slot, const int32_t* window) {
    const auto after = std::upper_bound(blocks.begin(), blocks.end(), slot,
                                        [](int64_t at, const CodeBlock& block) { return at < block.first_slot; });
    const CodeBlock& block = *(after - 1);
    const int64_t base = slot / L * L + window[0] - block.first_slot;
    const int32_t *begin = block.slots + block.offsets[latent], *stop = block.slots + block.offsets[latent + 1];
    const int32_t* first = std::lower_bound(begin, stop, base);
    return {&block, base, first, std::lower_bound(first, stop, base + window[1] - window[0])};
}

constexpr size_t EXAMPLES = 4096;  // in an item of work

}  // namespace

Window window_of(const RecordedText& text, const RecordNumbers& numbers, int64_t slot) {
    const int64_t L = static_cast<int64_t>(text.L), position = slot % L;
    const int32_t* tokens = text.contexts + slot / L * L;
    int64_t first = std::max<int64_t>(0, position - numbers.before);
    int64_t end = std::min(L, position + numbers.after + 1);
    for (int64_t p = position - 1; p >= first; --p) {
        if (text.separates(tokens[p])) first = p + 1;
    }
    for (int64_t p = position; p < end; ++p) {
        if (text.separates(tokens[p])) end = p + 1;
    }
    return {first, end};
}

void record_windows(const RecordedText& text, const RecordNumbers& numbers, const int64_t* first_document,
                    const int64_t* slots, size_t n, int32_t* windows, int64_t* documents) {
    const int64_t L = static_cast<int64_t>(text.L);
    for (size_t i = 0; i < n; ++i) {
        const Window window = window_of(text, numbers, slots[i]);
        windows[2 * i] = static_cast<int32_t>(window.first);
        windows[2 * i + 1] = static_cast<int32_t>(window.end);
        const int64_t context = slots[i] / L, *of_context = first_document + context;
        const int32_t* tokens = text.contexts + context * L;
        documents[i] = *of_context;
        if (text.separators.empty()) continue;
        documents[i] += std::count_if(tokens, tokens + slots[i] % L, [&](int32_t t) { return text.separates(t); });
    }
}

void window_counts(const std::vector<CodeBlock>& blocks, size_t L, const int32_t* latents, const int64_t* slots,
                   const int32_t* windows, size_t n, int threads, int32_t* counts) {
    parallel_for(chunks_of(n, EXAMPLES), threads, [&](size_t item, size_t) {
        for (size_t i = item * EXAMPLES; i < std::min(n, (item + 1) * EXAMPLES); ++i) {
            const Span span = span_of(blocks, static_cast<int64_t>(L), latents[i], slots[i], windows + 2 * i);
            counts[i] = static_cast<int32_t>(span.end - span.first);
        }
    });
}

void window_acts(const std::vector<CodeBlock>& blocks, size_t L, const int32_t* latents, const int64_t* slots,
                 const int32_t* windows, size_t n, const int32_t* offsets, int threads, std::int16_t* at, float* acts) {
    parallel_for(chunks_of(n, EXAMPLES), threads, [&](size_t item, size_t) {
        for (size_t i = item * EXAMPLES; i < std::min(n, (item + 1) * EXAMPLES); ++i) {
            const Span span = span_of(blocks, static_cast<int64_t>(L), latents[i], slots[i], windows + 2 * i);
            const int32_t room = offsets[i + 1] - offsets[i];
            for (int32_t j = 0; j < std::min<std::ptrdiff_t>(room, span.end - span.first); ++j) {
                at[offsets[i] + j] = static_cast<std::int16_t>(span.first[j] - span.base);
                acts[offsets[i] + j] = span.block->acts[span.first - span.block->slots + j];
            }
        }
    });
}

}  // namespace saefast
