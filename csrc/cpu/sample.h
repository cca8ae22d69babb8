// Random entries of a latent by hashes: which are drawn depends on neither their order nor their number.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

inline bool stronger(const Entry& a, const Entry& b) { return a.act > b.act || (a.act == b.act && a.slot < b.slot); }

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
        const auto by_act = [](const Candidate& a, const Candidate& b) { return stronger(a.entry, b.entry); };
        std::sort(kept_.begin(), kept_.end(), by_act);
        for (std::size_t i = 0; i < n_; ++i) {
            *slots++ = i < kept_.size() ? static_cast<std::int64_t>(kept_[i].entry.slot) : -1;
            *acts++ = i < kept_.size() ? kept_[i].entry.act : 0.0f;
        }
        kept_.clear();
    }

private:
    void flush() {
        if (!has_ || n_ == 0) return;
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
