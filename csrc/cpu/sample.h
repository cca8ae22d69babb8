// Random entries of a latent by hashes: which are drawn depends on neither their order nor their number.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace saefast {

inline std::uint32_t mix(std::uint32_t bits) {
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    return bits ^ (bits >> 16);
}

struct Entry {
    float act;
    std::uint32_t slot;
};

// Larger for the stronger, and of equal ones for the earlier: positive floats are in the order of their bits.
inline std::uint64_t strength_of(const Entry& entry) {
    std::uint32_t bits;
    std::memcpy(&bits, &entry.act, sizeof bits);
    return static_cast<std::uint64_t>(bits) << 32 | static_cast<std::uint32_t>(~entry.slot);
}

inline Entry entry_of(std::uint64_t strength) {
    const auto bits = static_cast<std::uint32_t>(strength >> 32);
    Entry entry{0.0f, ~static_cast<std::uint32_t>(strength)};
    std::memcpy(&entry.act, &bits, sizeof bits);
    return entry;
}

struct Candidate {
    std::uint32_t hash;
    Entry entry;
};

inline bool earlier(const Candidate& a, const Candidate& b) {
    return a.hash < b.hash || (a.hash == b.hash && a.entry.slot < b.entry.slot);
}

// The n entries of the smallest hashes, one of each context. Entries come context after context.
class Sample {
public:
    explicit Sample(std::size_t n) : n_(n) { kept_.reserve(n); }

    void add(const Candidate& one, std::uint32_t context) {
        if (kept_.size() == n_ && (n_ == 0 || !earlier(one, kept_.front()))) return;  // most of them
        if (has_ && context == context_) {
            if (earlier(one, pending_)) pending_ = one;
            return;
        }
        flush();
        pending_ = one;
        context_ = context;
        has_ = true;
    }

    // Writes the strongest first, fills up, and is empty again.
    void finish(std::int64_t*& slots, float*& acts) {
        flush();
        const auto by_act = [](const Candidate& a, const Candidate& b) { return strength_of(a.entry) > strength_of(b.entry); };
        std::sort(kept_.begin(), kept_.end(), by_act);
        for (std::size_t i = 0; i < n_; ++i) {
            *slots++ = i < kept_.size() ? static_cast<std::int64_t>(kept_[i].entry.slot) : -1;
            *acts++ = i < kept_.size() ? kept_[i].entry.act : 0.0f;
        }
        kept_.clear();
    }

private:
    void flush() {
        if (!has_) return;
        has_ = false;
        if (kept_.size() == n_) {
            if (!earlier(pending_, kept_.front())) return;
            std::pop_heap(kept_.begin(), kept_.end(), earlier);
            kept_.pop_back();
        }
        kept_.push_back(pending_);
        std::push_heap(kept_.begin(), kept_.end(), earlier);
    }

    std::size_t n_;
    std::vector<Candidate> kept_;  // the last of them in front
    Candidate pending_{};
    std::uint32_t context_ = 0;
    bool has_ = false;
};

}  // namespace saefast
