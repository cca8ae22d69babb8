// Exact top-k of centred @ W_enc.T + b_enc without the product in fp32. Spec: `saefast.reference.encode_topk`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "isa.h"
#include "screen.h"

namespace saefast {

// Memory that is used again from call to call; grows, never shrinks, holds anything.
template <typename T>
class Scratch {
public:
    T* get(std::size_t n) {
        if (n > size_) memory_.reset(), memory_.reset(new T[n]), size_ = n;
        return memory_.get();
    }

private:
    std::unique_ptr<T[]> memory_;
    std::size_t size_ = 0;
};

struct ScoreEntry {  // a row that is to be scored with a latent, and where the score goes
    std::int32_t row;
    std::uint32_t place;
};

class TopkEncoder {
public:
    static constexpr std::size_t MIN_D = 16, MAX_D = 32768, MAX_F = 1 << 27;
    static constexpr std::size_t LATENTS_PER_K = 32;  // F is at least K times this, or screening excludes too little
    static constexpr std::ptrdiff_t FINITE = -1, BAD_WEIGHTS = -2;

    explicit TopkEncoder(Isa isa) : isa_(isa) {}

    // centred [B, D], W_enc [F, D], b_enc [F] -> top_acts [B, K] after ReLU, top_indices [B, K]; order and ties as in
    // topk.h. A pre-activation is `dot` in encode.cpp: its bits depend on nothing but the row and the weights. Rows with
    // more than `limit` candidates have all their latents scored; it changes no bit. Returns FINITE, a row with a NaN,
    // or BAD_WEIGHTS where W_enc or b_enc hold NaN, Inf or numbers above 1e15; outputs are undefined then.
    std::ptrdiff_t encode(const float* centred, const float* W_enc, const float* b_enc, std::size_t B, std::size_t F,
                          std::size_t D, std::size_t K, std::size_t limit, int threads, float* top_acts,
                          std::int32_t* top_indices);

    // Of the last call: latents scored in fp32, not counting rows for which all were, and how many those are.
    std::size_t candidates() const { return candidates_; }
    std::size_t dense_rows() const { return dense_rows_; }

private:
    struct Call;
    struct Found {  // the candidates of a row; none where all latents must be scored
        const std::int32_t* latents;
        std::size_t n;
        float bound;  // whatever is no candidate is below it
    };
    std::ptrdiff_t some_rows(const Call& call);
    void find(const Call& call);
    void score_candidates(const Call& call, const std::vector<std::size_t>& offsets);
    std::ptrdiff_t score_all(const Call& call, const std::vector<std::size_t>& rows);

    Isa isa_;
    ScreenWeights weights_;
    std::size_t candidates_ = 0, dense_rows_ = 0;
    std::vector<Found> rows_;
    Scratch<std::int32_t> found_;   // what rows_ points to
    Scratch<ScoreEntry> entries_;   // by latent
    Scratch<float> values_;         // of the candidates, by row
    Scratch<float> dense_;
};

}  // namespace saefast
