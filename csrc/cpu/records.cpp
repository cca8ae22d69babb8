#include "records.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "parallel.h"
#include "sample.h"

namespace saefast {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;
constexpr size_t TRIES = 32;    // for each inactive example
constexpr size_t CHUNK = 1024;  // entries whose sums are added to those of the others as one: less is rounded away

uint32_t key_of(size_t latent, const Wanted& wanted, uint32_t salt) {
    return mix(static_cast<uint32_t>(latent) ^ mix(8 * wanted.seed + salt));
}

// What a thread needs, allocated before it runs.
struct Scratch {
    std::vector<uint64_t> peaks;  // strength_of the strongest entry of each context
    std::vector<Sample> intervals;
    Sample quantile, random;

    Scratch(const Wanted& wanted, size_t most_contexts)
        : intervals(), quantile(wanted.per_quantile), random(wanted.n_random) {
        peaks.reserve(most_contexts);
        intervals.reserve(wanted.n_intervals);
        for (size_t i = 0; i < wanted.n_intervals; ++i) intervals.emplace_back(wanted.per_interval);
    }
};

// Calls work(first_slot, slots, acts, n) for pieces of the code of a latent, in the order of their slots.
template <typename Work>
void for_chunks(const std::vector<CodeBlock>& blocks, size_t latent, const Work& work) {
    for (const CodeBlock& block : blocks) {
        const size_t end = static_cast<size_t>(block.offsets[latent + 1]);
        for (size_t i = static_cast<size_t>(block.offsets[latent]); i < end; i += CHUNK) {
            work(block.first_slot, block.slots + i, block.acts + i, std::min(CHUNK, end - i));
        }
    }
}

struct Totals {
    size_t count = 0;
    double sum = 0, squares = 0;
    float largest = 0;
    bool ok = true;
};

Totals totals_of(const std::vector<CodeBlock>& blocks, size_t latent, int64_t n_slots) {
    Totals all;
    int64_t last = -1;
    for_chunks(blocks, latent, [&](int64_t first_slot, const int32_t* slots, const float* acts, size_t n) {
        double sum = 0, squares = 0;
        bool ok = true;
        for (size_t i = 0; i < n; ++i) {
            const int64_t slot = first_slot + slots[i];
            const double act = acts[i];
            ok = ok && slot > last && acts[i] > 0 && acts[i] <= std::numeric_limits<float>::max();
            last = slot;
            sum += act;
            squares += act * act;
            all.largest = std::max(all.largest, acts[i]);
        }
        all.count += n;
        all.sum += sum;
        all.squares += squares;
        all.ok = all.ok && ok;
    });
    all.ok = all.ok && last < n_slots;
    return all;
}

size_t part_of(double share, size_t n_parts) {
    return std::min(static_cast<size_t>(share * static_cast<double>(n_parts)), n_parts - 1);
}

// The histogram, all samples and the peaks; sums of (act - mean)^p for p = 2, 3, 4 over the entries.
void scan(const std::vector<CodeBlock>& blocks, size_t latent, const Totals& totals, double mean, uint32_t L,
          const Wanted& wanted, Scratch& scratch, int64_t* histogram, double* powers) {
    const uint32_t interval_key = key_of(latent, wanted, 1), random_key = key_of(latent, wanted, 3);
    uint64_t context_end = 0;
    uint32_t context = 0;
    scratch.peaks.clear();
    for_chunks(blocks, latent, [&](int64_t first_slot, const int32_t* slots, const float* acts, size_t n) {
        double second = 0, third = 0, fourth = 0;
        for (size_t i = 0; i < n; ++i) {
            const uint32_t slot = static_cast<uint32_t>(first_slot + slots[i]);
            const Entry entry{acts[i], slot};
            const uint64_t strength = strength_of(entry);
            const double act = acts[i], off = act - mean, square = off * off;
            second += square;
            third += square * off;
            fourth += square * square;
            if (slot >= context_end) {
                context = slot / L;
                context_end = (static_cast<uint64_t>(context) + 1) * L;
                scratch.peaks.push_back(strength);
            } else {
                scratch.peaks.back() = std::max(scratch.peaks.back(), strength);
            }
            const double share = act / totals.largest;
            ++histogram[part_of(share, wanted.n_bins)];
            if (wanted.n_intervals) {
                scratch.intervals[part_of(share, wanted.n_intervals)].add({mix(slot ^ interval_key), entry}, context);
            }
            scratch.random.add({mix(slot ^ random_key), entry}, context);
        }
        powers[0] += second;
        powers[1] += third;
        powers[2] += fourth;
    });
}

void write_statistics(const Totals& totals, double n, double mean, const double* powers, double* out) {
    const double absent = n - static_cast<double>(totals.count);
    const double variance = (powers[0] + absent * mean * mean) / n;
    double skewness = std::numeric_limits<double>::quiet_NaN(), kurtosis = skewness;
    if (variance > 1e-24 * totals.squares / n) {
        skewness = (powers[1] - absent * mean * mean * mean) / n / (variance * std::sqrt(variance));
        kurtosis = (powers[2] + absent * mean * mean * mean * mean) / n / (variance * variance);
    }
    const double count = static_cast<double>(totals.count);
    const double all[STATISTICS] = {count, count / n, mean, variance, skewness, kurtosis, totals.largest, totals.squares};
    std::copy(all, all + STATISTICS, out);
}

struct Tokens {
    size_t begin, end;  // in their context
};

Tokens window_of(size_t context, size_t position, const TextShape& text, Window window) {
    const std::uint8_t* ends = text.ends + context * text.L;
    const size_t least = position > window.before ? position - window.before : 0;
    const size_t most = std::min(text.L, position + window.after + 1);
    size_t begin = position, end = position + 1;
    while (begin > least && !ends[begin - 1]) --begin;
    while (end < most && !ends[end - 1]) ++end;
    return {begin, end};
}

void draw_inactive(const std::vector<CodeBlock>& blocks, size_t latent, const TextShape& text, const Wanted& wanted,
                   int64_t* slots, float* acts) {
    const uint32_t key = key_of(latent, wanted, 4);
    const uint64_t n_slots = static_cast<uint64_t>(text.m) * text.L;
    size_t found = 0;
    std::fill(slots, slots + wanted.n_inactive, -1);
    std::fill(acts, acts + wanted.n_inactive, 0.0f);
    for (size_t i = 0; n_slots && i < TRIES * wanted.n_inactive && found < wanted.n_inactive; ++i) {
        const int64_t slot = static_cast<int64_t>(mix(static_cast<uint32_t>(i) ^ key) * n_slots >> 32);
        if (!text.encoded[slot]) continue;
        const int64_t L = static_cast<int64_t>(text.L), context = slot / L;
        if (std::any_of(slots, slots + found, [&](int64_t other) { return other / L == context; })) continue;
        const Tokens at = window_of(static_cast<size_t>(context), static_cast<size_t>(slot % L), text, wanted.window);
        const int64_t base = context * L;
        const Span span = entries_in(blocks, latent, base + static_cast<int64_t>(at.begin),
                                     base + static_cast<int64_t>(at.end));
        if (span.begin == span.end) slots[found++] = slot;
    }
}

void select_one(const std::vector<CodeBlock>& blocks, size_t latent, const Totals& totals, const TextShape& text,
                const Wanted& wanted, Scratch& scratch, double* statistics, int64_t* histogram, int64_t* slots,
                float* acts) {
    const double n = static_cast<double>(std::max<size_t>(text.n_rows, 1)), mean = totals.sum / n;
    double powers[3] = {0, 0, 0};
    std::fill(histogram, histogram + wanted.n_bins, 0);
    scan(blocks, latent, totals, mean, static_cast<uint32_t>(text.L), wanted, scratch, histogram, powers);
    write_statistics(totals, n, mean, powers, statistics);

    auto& peaks = scratch.peaks;
    const size_t m = peaks.size(), top = std::min(m, wanted.n_top);
    std::partial_sort(peaks.begin(), peaks.begin() + static_cast<std::ptrdiff_t>(top), peaks.end(), std::greater<>());
    for (size_t i = 0; i < wanted.n_top; ++i) {
        const Entry entry = i < top ? entry_of(peaks[i]) : Entry{0.0f, 0};
        *slots++ = i < top ? static_cast<int64_t>(entry.slot) : -1;
        *acts++ = entry.act;
    }
    for (Sample& interval : scratch.intervals) interval.finish(slots, acts);
    const uint32_t key = key_of(latent, wanted, 2);
    for (size_t i = 0; i < wanted.n_quantiles; ++i) {
        const size_t begin = i * m / wanted.n_quantiles, end = (i + 1) * m / wanted.n_quantiles;
        const auto at = peaks.begin() + static_cast<std::ptrdiff_t>(begin);
        const auto until = peaks.begin() + static_cast<std::ptrdiff_t>(end);
        if (until != peaks.end()) std::nth_element(at, until, peaks.end());
        for (auto one = at; one != until; ++one) {
            const Entry entry = entry_of(*one);
            scratch.quantile.add({mix(entry.slot ^ key), entry}, entry.slot / static_cast<uint32_t>(text.L));
        }
        scratch.quantile.finish(slots, acts);
    }
    scratch.random.finish(slots, acts);
    draw_inactive(blocks, latent, text, wanted, slots, acts);
}

}  // namespace

Span entries_in(const std::vector<CodeBlock>& blocks, size_t latent, int64_t begin, int64_t end) {
    const auto after = [](int64_t slot, const CodeBlock& block) { return slot < block.first_slot; };
    const auto next = std::upper_bound(blocks.begin(), blocks.end(), begin, after);
    if (next == blocks.begin()) return {nullptr, 0, 0};
    const CodeBlock& block = *(next - 1);
    const int32_t *from = block.slots + block.offsets[latent], *to = block.slots + block.offsets[latent + 1];
    const auto below = [&](int32_t slot, int64_t bound) { return block.first_slot + slot < bound; };
    const int32_t* low = std::lower_bound(from, to, begin, below);
    return {&block, low - block.slots, std::lower_bound(low, to, end, below) - block.slots};
}

int64_t select_examples(const std::vector<CodeBlock>& blocks, size_t first, size_t n, const TextShape& text,
                        const Wanted& wanted, int threads, const SelectedOut& out) {
    int64_t most = 0;
    for (size_t f = first; f < first + n; ++f) {
        int64_t count = 0;
        for (const CodeBlock& block : blocks) count += block.offsets[f + 1] - block.offsets[f];
        most = std::max(most, count);
    }
    std::vector<Scratch> scratch;
    scratch.reserve(std::min<size_t>(static_cast<size_t>(threads), n));
    for (size_t i = 0; i < std::min<size_t>(static_cast<size_t>(threads), n); ++i) {
        scratch.emplace_back(wanted, std::min(static_cast<size_t>(most), text.m));
    }
    const size_t E = wanted.examples();
    const int64_t n_slots = static_cast<int64_t>(text.m * text.L), none = std::numeric_limits<int64_t>::max();
    std::atomic<int64_t> damaged{none};
    parallel_for(n, threads, [&](size_t i, size_t thread) {
        const Totals totals = totals_of(blocks, first + i, n_slots);
        if (!totals.ok) {
            int64_t seen = damaged.load(), mine = static_cast<int64_t>(first + i);
            while (mine < seen && !damaged.compare_exchange_weak(seen, mine)) {
            }
            return;
        }
        select_one(blocks, first + i, totals, text, wanted, scratch[thread], out.statistics + i * STATISTICS,
                   out.histogram + i * wanted.n_bins, out.slots + i * E, out.acts + i * E);
    });
    return damaged.load() == none ? -1 : damaged.load();
}

void token_windows(const int64_t* slots, size_t n, const TextShape& text, Window window, int32_t* windows) {
    for (size_t i = 0; i < n; ++i) {
        const size_t slot = static_cast<size_t>(slots[i]);
        const Tokens at = window_of(slot / text.L, slot % text.L, text, window);
        windows[2 * i] = static_cast<int32_t>(at.begin);
        windows[2 * i + 1] = static_cast<int32_t>(at.end);
    }
}

void token_documents(const int64_t* slots, size_t n, const TextShape& text, const int64_t* first_document,
                     int64_t* documents) {
    for (size_t i = 0; i < n; ++i) {
        const size_t slot = static_cast<size_t>(slots[i]), context = slot / text.L;
        const std::uint8_t *from = text.ends + context * text.L, *to = text.ends + slot;
        documents[i] = first_document[context] + std::count_if(from, to, [](std::uint8_t end) { return end != 0; });
    }
}

}  // namespace saefast
