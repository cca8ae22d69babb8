#include "records.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace saefast {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;
constexpr size_t TRIES = 32;

uint32_t mix(uint32_t bits) {
    bits ^= bits >> 16;
    bits *= 0x7FEB352DU;
    bits ^= bits >> 15;
    bits *= 0x846CA68BU;
    return bits ^ (bits >> 16);
}

uint32_t key_of(int64_t latent, uint32_t seed, uint32_t salt) {
    return mix(static_cast<uint32_t>(latent) ^ mix(8 * seed + salt));
}

struct Entry {
    int64_t slot;
    float act;
    uint32_t hash;
};

bool stronger(const Entry& a, const Entry& b) { return a.act != b.act ? a.act > b.act : a.slot < b.slot; }
bool earlier(const Entry& a, const Entry& b) { return a.hash != b.hash ? a.hash < b.hash : a.slot < b.slot; }

// Of the entries that it is given, those of the n smallest hashes, one of each context. What was put out of it may come
// again with a smaller hash; all that are in it are smaller than all that are not.
class Sample {
public:
    void begin(size_t n, int64_t L) {
        n_ = n, L_ = L, worst_ = 0;
        kept_.clear();
    }
    void reserve(size_t n) { kept_.reserve(n); }

    void add(const Entry& entry) {
        if (kept_.size() == n_) {
            if (n_ == 0 || !earlier(entry, kept_[worst_])) return;
        }
        const int64_t context = entry.slot / L_;
        for (Entry& other : kept_) {
            if (other.slot / L_ != context) continue;
            if (earlier(entry, other)) other = entry, find_worst();
            return;
        }
        if (kept_.size() < n_) {
            kept_.push_back(entry);
        } else {
            kept_[worst_] = entry;
        }
        find_worst();
    }

    // The strongest first, and -1 for what there is not.
    void write(int64_t* slots, float* acts) {
        std::sort(kept_.begin(), kept_.end(), stronger);
        for (size_t i = 0; i < n_; ++i) {
            slots[i] = i < kept_.size() ? kept_[i].slot : -1;
            acts[i] = i < kept_.size() ? kept_[i].act : 0;
        }
    }

private:
    void find_worst() {
        worst_ = static_cast<size_t>(std::max_element(kept_.begin(), kept_.end(), earlier) - kept_.begin());
    }
    size_t n_ = 0, worst_ = 0;
    int64_t L_ = 1;
    std::vector<Entry> kept_;
};

size_t part_of(double share, size_t n) { return std::min(static_cast<size_t>(share * static_cast<double>(n)), n - 1); }

// One latent at a time; a thread has one of these and uses its memory again and again.
class Selector {
public:
    Selector(const std::vector<CodeBlock>& blocks, const RecordedText& text, const RecordNumbers& numbers)
        : blocks_(blocks), text_(text), n_(numbers), L_(static_cast<int64_t>(text.L)), intervals_(numbers.n_intervals) {
        peaks_.reserve(text.m);  // nothing is allocated in the loop
        for (Sample& sample : intervals_) sample.reserve(n_.per_interval);
        sample_.reserve(std::max({n_.per_quantile, n_.n_random}));
        inactive_.reserve(n_.n_inactive);
    }

    // False if the entries are not what a code is.
    bool select(int64_t latent, double* statistics, int64_t* histogram, int64_t* slots, float* acts) {
        if (!look_through(latent, statistics)) return false;
        const float largest = static_cast<float>(statistics[6]);
        draw_tokens(latent, largest, histogram, slots + n_.n_top, acts + n_.n_top);
        const size_t quantiles = n_.n_top + n_.n_intervals * n_.per_interval;
        const size_t random = quantiles + n_.n_quantiles * n_.per_quantile;
        sample_.write(slots + random, acts + random);
        order_peaks(latent, slots, acts, quantiles);
        draw_inactive(latent, slots + random + n_.n_random, acts + random + n_.n_random);
        return true;
    }

private:
    template <typename Use>
    void each(int64_t latent, const Use& use) const {
        for (const CodeBlock& block : blocks_) {
            for (int64_t i = block.offsets[latent]; i < block.offsets[latent + 1]; ++i) {
                use(block.first_slot + block.slots[i], block.acts[i]);
            }
        }
    }

    // The statistics, and the largest entry of each context, `peaks_`.
    bool look_through(int64_t latent, double* statistics) {
        peaks_.clear();
        double sums[4] = {0, 0, 0, 0};
        int64_t count = 0, last = -1, context_end = 0;
        bool ok = true;
        each(latent, [&](int64_t slot, float act) {
            ok = ok && slot > last && slot < text_.n_slots() && act > 0 && act < std::numeric_limits<float>::infinity();
            if (!ok) return;
            const double a = act, square = a * a;
            sums[0] += a, sums[1] += square, sums[2] += square * a, sums[3] += square * square;
            ++count, last = slot;
            if (slot >= context_end) {
                context_end = (slot / L_ + 1) * L_;
                peaks_.push_back({slot, act, 0});
            } else if (act > peaks_.back().act) {
                peaks_.back() = {slot, act, 0};
            }
        });
        if (!ok) return false;
        const double n = static_cast<double>(std::max<int64_t>(text_.n_rows, 1));
        const double first = sums[0] / n, second = sums[1] / n, third = sums[2] / n, fourth = sums[3] / n;
        const double variance = std::max(second - first * first, 0.0);
        double skewness = std::nan(""), kurtosis = skewness, largest = 0;
        if (variance > 0) {
            skewness = (third - 3 * first * second + 2 * first * first * first) / std::pow(variance, 1.5);
            kurtosis = (fourth - 4 * first * third + 6 * first * first * second - 3 * first * first * first * first) /
                       (variance * variance);
        }
        for (const Entry& peak : peaks_) largest = std::max<double>(largest, peak.act);
        const double found[STATISTICS] = {static_cast<double>(count), static_cast<double>(count) / n, first, variance,
                                          skewness, kurtosis, largest, sums[1]};
        std::copy(found, found + STATISTICS, statistics);
        return true;
    }

    // The histogram, and by their hashes tokens of each interval and, in `sample_`, of all.
    void draw_tokens(int64_t latent, float largest, int64_t* histogram, int64_t* slots, float* acts) {
        const uint32_t of_interval = key_of(latent, n_.seed, 1), of_all = key_of(latent, n_.seed, 3);
        std::fill(histogram, histogram + n_.n_bins, 0);
        for (Sample& sample : intervals_) sample.begin(n_.per_interval, L_);
        sample_.begin(n_.n_random, L_);
        each(latent, [&](int64_t slot, float act) {
            const double share = static_cast<double>(act) / static_cast<double>(largest);
            const uint32_t low = static_cast<uint32_t>(slot);
            ++histogram[part_of(share, n_.n_bins)];
            if (n_.n_intervals > 0) intervals_[part_of(share, n_.n_intervals)].add({slot, act, mix(low ^ of_interval)});
            sample_.add({slot, act, mix(low ^ of_all)});
        });
        for (size_t i = 0; i < n_.n_intervals; ++i) {
            intervals_[i].write(slots + i * n_.per_interval, acts + i * n_.per_interval);
        }
    }

    // The strongest contexts, and some of each quantile group; `peaks_` is put in order as far as that needs.
    void order_peaks(int64_t latent, int64_t* slots, float* acts, size_t quantiles) {
        const auto begin = peaks_.begin(), end = peaks_.end();
        const size_t m = peaks_.size(), n_top = std::min(n_.n_top, m);
        std::partial_sort(begin, begin + static_cast<std::ptrdiff_t>(n_top), end, stronger);
        for (size_t i = 0; i < n_.n_top; ++i) {
            slots[i] = i < n_top ? peaks_[i].slot : -1;
            acts[i] = i < n_top ? peaks_[i].act : 0;
        }
        const uint32_t key = key_of(latent, n_.seed, 2);
        for (Entry& peak : peaks_) peak.hash = mix(static_cast<uint32_t>(peak.slot) ^ key);
        auto rest = begin;  // groups from the strongest down: whatever is before it is stronger
        for (size_t i = n_.n_quantiles; i-- > 0;) {
            const auto stop = end - static_cast<std::ptrdiff_t>(i * m / n_.n_quantiles);
            if (stop != end && rest != stop) std::nth_element(rest, stop, end, stronger);
            sample_.begin(n_.per_quantile, L_);
            for (; rest != stop; ++rest) sample_.add(*rest);
            sample_.write(slots + quantiles + i * n_.per_quantile, acts + quantiles + i * n_.per_quantile);
        }
    }

    void draw_inactive(int64_t latent, int64_t* slots, float* acts) {
        const uint32_t key = key_of(latent, n_.seed, 4);
        inactive_.clear();
        for (size_t i = 0; i < TRIES * n_.n_inactive && inactive_.size() < n_.n_inactive; ++i) {
            const uint64_t hash = mix(static_cast<uint32_t>(i) ^ key);
            const int64_t slot = static_cast<int64_t>(hash * static_cast<uint64_t>(text_.n_slots()) >> 32);
            const int64_t context = slot / L_;
            const auto same = [&](int64_t other) { return other / L_ == context; };
            if (!text_.encoded[slot] || std::any_of(inactive_.begin(), inactive_.end(), same)) continue;
            const Window window = window_of(text_, n_, slot);
            if (!active_between(latent, context * L_ + window.first, context * L_ + window.end)) inactive_.push_back(slot);
        }
        for (size_t i = 0; i < n_.n_inactive; ++i) slots[i] = i < inactive_.size() ? inactive_[i] : -1, acts[i] = 0;
    }

    bool active_between(int64_t latent, int64_t first, int64_t end) const {
        for (const CodeBlock& block : blocks_) {
            if (first >= block.first_slot + block.n_slots || end <= block.first_slot) continue;
            const int32_t* stop = block.slots + block.offsets[latent + 1];
            const int32_t* found = std::lower_bound(block.slots + block.offsets[latent], stop, first - block.first_slot);
            if (found != stop && block.first_slot + *found < end) return true;
        }
        return false;
    }

    const std::vector<CodeBlock>& blocks_;
    const RecordedText& text_;
    const RecordNumbers n_;
    const int64_t L_;
    std::vector<Entry> peaks_;
    std::vector<Sample> intervals_;
    Sample sample_;
    std::vector<int64_t> inactive_;
};

}  // namespace

int64_t select_records(const std::vector<CodeBlock>& blocks, int64_t first, int64_t end, const RecordedText& text,
                       const RecordNumbers& numbers, int threads, double* statistics, int64_t* histogram,
                       int64_t* slots, float* acts) {
    const size_t n = static_cast<size_t>(end - first), E = numbers.examples();
    std::vector<Selector> selectors;
    const size_t used = std::max<size_t>(1, std::min<size_t>(static_cast<size_t>(threads), n));
    selectors.reserve(used);
    for (size_t i = 0; i < used; ++i) selectors.emplace_back(blocks, text, numbers);
    std::atomic<int64_t> bad{-1};
    parallel_for(n, threads, [&](size_t i, size_t thread) {
        const int64_t latent = first + static_cast<int64_t>(i);
        const bool ok = selectors[thread].select(latent, statistics + i * STATISTICS, histogram + i * numbers.n_bins,
                                                 slots + i * E, acts + i * E);
        if (!ok) bad = latent;
    });
    return bad;
}

}  // namespace saefast
