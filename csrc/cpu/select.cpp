#include "select.h"

#include <algorithm>
#include <limits>

#include "find.h"

namespace saefast {

BatchTopk::BatchTopk(size_t keep, size_t F, Isa isa)
    : keep_(keep), F_(F), isa_(isa), bound_(-std::numeric_limits<float>::infinity()) {}

bool BatchTopk::before(const Entry& a, const Entry& b) {
    return a.ordered != b.ordered ? a.ordered > b.ordered : a.place < b.place;
}

// Keeping the best makes room for as many again, so the time is linear in what comes.
void BatchTopk::prune() {
    if (found_.size() <= keep_) return;
    const auto last = found_.begin() + static_cast<std::ptrdiff_t>(keep_) - 1;
    std::nth_element(found_.begin(), last, found_.end(), before);
    found_.resize(keep_);
    // Equal values still come in: pieces arrive in any order, so their rows may be smaller.
    bound_ = from_ordered(found_.back().ordered);
}

std::ptrdiff_t BatchTopk::feed(const float* pre_acts, size_t rows, size_t columns, size_t row, size_t column) {
    const auto find = SAEFAST_PICK(find, isa_);
    rows_seen_ = std::max(rows_seen_, row + rows);
    for (size_t r = 0; r < rows; ++r) {
        const float* values = pre_acts + r * columns;
        const std::uint64_t first = std::uint64_t{row + r} * F_ + column;
        for (size_t i = 0; i < columns; i += BLOCK) {
            uint64_t hits;
            i = find(values, i, columns, bound_, hits);
            if (i >= columns) break;
            for (; hits; hits &= hits - 1) {
                const size_t j = i + static_cast<size_t>(__builtin_ctzll(hits));
                if (values[j] != values[j]) return static_cast<std::ptrdiff_t>(r);
                const int32_t ordered = to_ordered(values[j]);
                found_.push_back({ordered == -1 ? 0 : ordered, first + j});  // -0 ties with 0
            }
            if (found_.size() >= 2 * keep_ + BLOCK) prune();
        }
    }
    return -1;
}

void BatchTopk::merge(const BatchTopk& other) {
    rows_seen_ = std::max(rows_seen_, other.rows_seen_);
    found_.insert(found_.end(), other.found_.begin(), other.found_.end());
    prune();
}

void BatchTopk::finish(size_t B, float* acts, int32_t* indices, int32_t* row_offsets) {
    prune();
    std::fill(row_offsets, row_offsets + B + 1, 0);
    for (const Entry& entry : found_) ++row_offsets[entry.place / F_ + 1];
    for (size_t b = 0; b < B; ++b) row_offsets[b + 1] += row_offsets[b];

    std::vector<Entry> sorted(found_.size());  // by row; then each row by column
    std::vector<int32_t> next(row_offsets, row_offsets + B);
    for (const Entry& entry : found_) sorted[static_cast<size_t>(next[entry.place / F_]++)] = entry;
    for (size_t b = 0; b < B; ++b) {
        const auto begin = sorted.begin();
        std::sort(begin + row_offsets[b], begin + row_offsets[b + 1],
                  [](const Entry& a, const Entry& c) { return a.place < c.place; });
    }
    for (size_t i = 0; i < sorted.size(); ++i) {
        acts[i] = std::max(from_ordered(sorted[i].ordered), 0.0f);
        indices[i] = static_cast<int32_t>(sorted[i].place % F_);
    }
}

AboveBlock::AboveBlock(size_t rows, Isa isa) : isa_(isa), found_(rows) {}

std::ptrdiff_t AboveBlock::feed(const float* pre_acts, const float* thresholds, size_t columns) {
    const auto above = SAEFAST_PICK(above, isa_);
    for (size_t r = 0; r < found_.size(); ++r) {
        const float* values = pre_acts + r * columns;
        for (size_t i = 0; i < columns; i += BLOCK) {
            uint64_t hits = above(values + i, thresholds + i, std::min(BLOCK, columns - i));
            for (; hits; hits &= hits - 1) {
                const size_t j = i + static_cast<size_t>(__builtin_ctzll(hits));
                if (values[j] != values[j]) return static_cast<std::ptrdiff_t>(r);
                found_[r].push_back({values[j], static_cast<int32_t>(columns_ + j)});
            }
        }
    }
    columns_ += columns;
    return -1;
}

size_t AboveBlock::size() const {
    size_t total = 0;
    for (const auto& row : found_) total += row.size();
    return total;
}

void AboveBlock::finish(float* acts, int32_t* indices, int32_t* counts) const {
    for (const auto& row : found_) {
        *counts++ = static_cast<int32_t>(row.size());
        for (const Entry& entry : row) {
            *acts++ = entry.act;
            *indices++ = entry.index;
        }
    }
}

}  // namespace saefast
