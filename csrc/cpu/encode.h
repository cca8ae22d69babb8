// Exact selections from centred @ W_enc.T + b_enc without the product in fp32. Specs: `encode_topk`, `encode_batch_topk`,
// `encode_threshold` and `encode_group_max` of `saefast.reference`.
//
// Each selection finds candidates among 8-bit products with bounds of their errors (screen.h), so that no other latent can
// belong to the result (the proof stands in the file of the selection), takes their pre-activations in fp32, and selects
// among these. A pre-activation is `dot` in encode.cpp: its bits depend on nothing but the row and the weights. So the
// result is, bit for bit, that of scoring every latent of every row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "candidates.h"
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

struct Product {  // centred [B, D], W_enc [F, D], b_enc [F]
    const float *centred, *W_enc, *b_enc;
    std::size_t B, F, D;
    std::size_t limit;  // a row with more candidates has all its latents scored; it changes no bit
    std::size_t most;   // where more would have to be scored, nothing is (TOO_MANY)
    int threads;
};

// Each selection returns FINITE or, with undefined outputs, the first row with a NaN; BAD_WEIGHTS where W_enc or b_enc hold
// NaN, Inf or numbers above 1e15; TOO_MANY where the bounds exclude too little. Which one depends on the data and on the
// limits alone.
class ScreenedEncoder {
public:
    static constexpr std::size_t MIN_D = 16, MAX_D = 32768, MAX_F = 1 << 27;
    static constexpr std::size_t LATENTS_PER_K = 32;  // F is at least K times this, or screening excludes too little
    static constexpr std::ptrdiff_t FINITE = -1, BAD_WEIGHTS = -2, TOO_MANY = -3;

    explicit ScreenedEncoder(Isa isa) : isa_(isa), weights_(isa) {}

    // top_acts [B, K] after ReLU, top_indices [B, K]; order and ties as in topk.h. Takes no notice of `most`.
    std::ptrdiff_t top_k(const Product& product, std::size_t K, float* top_acts, std::int32_t* top_indices);

    // acts [B * K] after ReLU, indices [B * K], row_offsets [B + 1]: the B * K largest; ties as in select.h.
    std::ptrdiff_t batch_topk(const Product& product, std::size_t K, float* acts, std::int32_t* indices,
                              std::int32_t* row_offsets);

    // Entries above thresholds [F], as they are, row after row: how many there are, row_offsets [B + 1]. Then `write_above`
    // writes the first `room` of them, until the next call of a selection, and returns how many that were.
    std::ptrdiff_t above(const Product& product, const float* thresholds, std::int32_t* row_offsets);
    std::size_t write_above(std::size_t room, float* acts, std::int32_t* indices) const;

    // The largest of each of K equal groups of consecutive latents, the smaller index among equal ones: acts [B, K] after
    // ReLU, indices [B, K]. K divides F.
    std::ptrdiff_t group_max(const Product& product, std::size_t K, float* acts, std::int32_t* indices);

    // Of the last call: latents scored in fp32, not counting rows for which all were, and how many those are.
    std::size_t candidates() const { return candidates_; }
    std::size_t dense_rows() const { return dense_rows_; }

    ScreenWeights& weights() { return weights_; }  // for whoever writes W_enc

private:
    static constexpr std::size_t MAX_FOUND = std::size_t{1} << 27;  // candidates that there is memory for

    struct Search {  // what a selection looks for
        std::size_t columns;          // latents screened at a time
        std::size_t scratch = 0;      // numbers that `take_in` has room for
        float bound;                  // of each row, to begin with
        float margin = 0;             // of the bound of an error, times the root of D
        bool by_approx = false;       // as if approximations were without error, and all finite
        std::function<void(const float* approx, std::size_t columns, std::size_t first, const Errors& errors,
                           float* scratch, Candidates& candidates)> take_in;
        std::function<void(const Errors& errors, Candidates& candidates)> finish;
    };
    struct Row {
        bool whole;             // all its latents must be scored: there is no list
        std::size_t n;          // of the list, or F once it was scored whole
        std::int32_t* latents;  // null once it was scored whole
        float *approx, *upper;  // of the list, for searches that keep them
        const float* values;    // fp32, once scored
        float bound, margin;    // at the end of the search
        std::size_t latent(std::size_t i) const { return latents ? static_cast<std::size_t>(latents[i]) : i; }
    };

    // What every call begins with; false where the weights cannot be rounded.
    bool begin(const Product& product);
    Search search_topk(const Product& product, std::size_t K) const;
    // The candidates of each row; false where there are more than `most`.
    bool find(const Product& product, const Search& search, bool keep);
    // Scores candidates, and whole rows. Returns the first row with a NaN, or FINITE.
    std::ptrdiff_t score(const Product& product);
    void score_candidates(const Product& product);
    // Scores all latents of `rows`, in memory of their own or, with `keep`, one after another in dense_. Calls
    // finite(row, values) for each, and returns the first row for which it says no, or FINITE.
    std::ptrdiff_t score_rows(const Product& product, const std::vector<std::size_t>& rows, bool keep,
                              const std::function<bool(std::size_t row, const float* values)>& finite);

    std::ptrdiff_t some_top_k(const Product& product, std::size_t K, float* top_acts, std::int32_t* top_indices);
    float guess(const Product& product, std::size_t K, double share);
    bool find_batch(const Product& product, std::size_t K, float bound);
    // Over approx of the rows that have a list or, once they are `scored`, over the values of all rows:
    std::size_t count(bool scored, float bound, int threads) const;  // that reach the bound
    float bound_of(bool scored, std::size_t keep, std::size_t spare, float low, int threads) const;

    Isa isa_;
    ScreenWeights weights_;
    std::size_t candidates_ = 0, dense_rows_ = 0;
    std::size_t above_ = 0;  // entries that write_above can write
    float bound_ = 0;        // that all candidates of batch_topk reach
    std::vector<float> thresholds_;
    std::vector<Row> rows_;
    Scratch<std::int32_t> found_;   // what rows_ points to
    Scratch<float> bounds_;         // approx and upper of these
    Scratch<ScoreEntry> entries_;   // by latent
    Scratch<float> values_;         // of the candidates, by row
    Scratch<float> dense_, sample_;
};

}  // namespace saefast
