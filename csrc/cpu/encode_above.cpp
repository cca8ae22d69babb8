// The entries above a threshold of their latent.
//
// A candidate's upper exceeds its threshold. Whatever is no candidate has upper <= threshold, and so has its
// pre-activation, which is not above upper: it does not belong to the result. Of the candidates those belong to it whose
// score exceeds the threshold. A threshold is known, so there is no margin and nothing to check afterwards.

#include <algorithm>
#include <limits>

#include "encode.h"

namespace saefast {

using std::int32_t;
using std::ptrdiff_t;
using std::size_t;

ptrdiff_t ScreenedEncoder::above(const Product& given, const float* thresholds, int32_t* row_offsets) {
    if (!begin(given)) return BAD_WEIGHTS;
    Product product = given;
    product.most = std::min<size_t>(product.most, std::numeric_limits<int32_t>::max());

    Search search;
    search.columns = 1024;
    search.take_in = [&](const float* approx, size_t columns, size_t first, const Errors& errors, float*,
                         Candidates& c) {
        take_in_above(approx, columns, first, errors, thresholds, product.limit, isa_, c);
    };
    search.finish = [](const Errors&, Candidates&) {};
    if (!find(product, search, false)) return TOO_MANY;
    const ptrdiff_t status = score(product);
    if (status != FINITE) return status;
    thresholds_.assign(thresholds, thresholds + product.F);
    row_offsets[0] = 0;
    for (size_t r = 0; r < product.B; ++r) {
        int32_t n = 0;
        for (size_t i = 0; i < rows_[r].n; ++i) n += rows_[r].values[i] > thresholds[rows_[r].latent(i)];
        row_offsets[r + 1] = row_offsets[r] + n;
    }
    above_ = static_cast<size_t>(row_offsets[product.B]);
    return FINITE;
}

size_t ScreenedEncoder::write_above(size_t room, float* acts, int32_t* indices) const {
    const size_t n = std::min(room, above_);
    size_t at = 0;
    for (auto row = rows_.begin(); at < n; ++row) {
        for (size_t i = 0; i < row->n && at < n; ++i) {
            const size_t f = row->latent(i);
            if (row->values[i] > thresholds_[f]) acts[at] = row->values[i], indices[at++] = static_cast<int32_t>(f);
        }
    }
    return n;
}

}  // namespace saefast
