// Selections whose rows have different numbers of entries. Specs: `saefast.reference.batch_topk`, `above_threshold`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace saefast {

// The `keep` largest of a whole matrix [B, F] that comes in pieces, in any order; among equal values the smaller row,
// then the smaller column wins. Not for several threads at a time: each has its own, and they are merged.
class BatchTopk {
public:
    BatchTopk(std::size_t keep, std::size_t F, Isa isa);

    // pre_acts [rows, columns] at (row, column) of the matrix. Returns the first of its rows with a NaN, or -1.
    std::ptrdiff_t feed(const float* pre_acts, std::size_t rows, std::size_t columns, std::size_t row,
                        std::size_t column);
    void merge(const BatchTopk& other);
    // acts [keep] after ReLU, indices [keep] and row_offsets [B + 1], in order of row and column.
    void finish(std::size_t B, float* acts, std::int32_t* indices, std::int32_t* row_offsets);

    std::size_t keep() const { return keep_; }
    std::size_t size() const { return found_.size(); }
    std::size_t F() const { return F_; }
    std::size_t rows_seen() const { return rows_seen_; }

private:
    struct Entry {
        std::int32_t ordered;  // the value as an integer of the same order
        std::uint64_t place;   // row * F + column
    };
    static bool before(const Entry& a, const Entry& b);
    void prune();

    std::size_t keep_, F_, rows_seen_ = 0;
    Isa isa_;
    float bound_;  // no smaller value can be among the largest any more
    std::vector<Entry> found_;
};

// The entries of a block of rows that exceed a threshold of their column; columns come a few at a time, in order.
class AboveBlock {
public:
    AboveBlock(std::size_t rows, Isa isa);

    // pre_acts [rows, columns], thresholds [columns]. Returns the first row with a NaN, or -1.
    std::ptrdiff_t feed(const float* pre_acts, const float* thresholds, std::size_t columns);
    std::size_t size() const;
    // acts and indices [size()], row after row; counts [rows].
    void finish(float* acts, std::int32_t* indices, std::int32_t* counts) const;

    std::size_t rows() const { return found_.size(); }

private:
    struct Entry {
        float act;
        std::int32_t index;
    };
    Isa isa_;
    std::size_t columns_ = 0;
    std::vector<std::vector<Entry>> found_;
};

}  // namespace saefast
