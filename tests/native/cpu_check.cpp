// Runs every op of csrc/cpu/ on odd sizes, on one thread and on several, for a build under sanitizers. Exits with 1 if
// the bits differ. (What the ops compute is tested from Python.)

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/centre.h"
#include "cpu/decode.h"
#include "cpu/encode.h"
#include "cpu/grad_acts.h"
#include "cpu/group.h"
#include "cpu/screen.h"
#include "cpu/select.h"
#include "cpu/topk.h"
#include "cpu/update.h"

using namespace saefast;
using Values = std::vector<float>;
using Ints = std::vector<std::int32_t>;

static std::mt19937 rng{7};

static Values random(std::size_t n) {
    std::normal_distribution<float> normal;
    Values out(n);
    for (float& value : out) value = normal(rng);
    return out;
}

// One step at these sizes; everything it wrote, one after the other.
static Values step(std::size_t B, std::size_t D, std::size_t F, std::size_t K, int threads, Isa isa) {
    rng.seed(7);
    const Values x = random(B * D), bias = random(D), pre_acts = random(B * F);
    Values W_enc = random(F * D), W_dec = random(F * D), b_enc = random(F), b_dec = random(D), out;
    Values moments(4 * (F * D + F + D), 0.01f);
    const Values narrow = random(B * (D / 2 + 1)), push_row = random(D / 2 + 1), entries = random(B * K);
    const Values latents = random(F), pull = random(F * D);
    const auto keep = [&](const Values& part) { out.insert(out.end(), part.begin(), part.end()); };

    Values centred(B * D), error(B * D), squares(B), acts(B * K), acts_again(B * K);
    Ints indices(B * K), indices_again(B * K), offsets(F + 1), pairs(B * K), tokens(B * K);
    out.push_back(static_cast<float>(centre(x.data(), bias.data(), B, D, threads, isa, centred.data())));
    topk(pre_acts.data(), B, F, K, threads, isa, acts.data(), indices.data());

    TopkBlock block(B, K, isa);
    BatchTopk batch(B * K, F, isa), other(B * K, F, isa);
    AboveBlock above(B, isa);
    const std::size_t width = F / 2 + 1;
    for (std::size_t first = 0; first < F; first += width) {
        const std::size_t n = std::min(width, F - first);
        Values piece(B * n);
        for (std::size_t b = 0; b < B; ++b) std::memcpy(&piece[b * n], &pre_acts[b * F + first], 4 * n);
        block.feed(piece.data(), n);
        (first ? other : batch).feed(piece.data(), B, n, 0, first);
        above.feed(piece.data(), Values(n, 0.5f).data(), n);
    }
    block.finish(acts_again.data(), indices_again.data());
    if (acts_again != acts || indices_again != indices) std::exit(1);
    batch.merge(other);
    Values batch_acts(B * K), above_acts(above.size());
    Ints batch_indices(B * K), row_offsets(B + 1), above_indices(above.size()), counts(B);
    batch.finish(B, batch_acts.data(), batch_indices.data(), row_offsets.data());
    above.finish(above_acts.data(), above_indices.data(), counts.data());
    keep(acts), keep(batch_acts), keep(above_acts);

    for (const bool ragged : {false, true}) {
        const Code code = ragged ? Code{batch_acts.data(), batch_indices.data(), row_offsets.data(), 0}
                                 : Code{acts.data(), indices.data(), nullptr, K};
        decode_error(code, W_dec.data(), bias.data(), x.data(), B, D, threads, isa, error.data(), squares.data());
        group_by_latent(code, B, F, B * K, threads, offsets.data(), pairs.data(), tokens.data());
        float* m = moments.data();
        const auto param = [&](Values& value) {
            Param made{value.data(), m, m + value.size()};
            m += 2 * value.size();
            return made;
        };
        const Weights weights{param(W_enc), param(b_enc), param(W_dec), param(b_dec), F, D, D};
        const Batch rows{centred.data(), error.data(),  code.acts, offsets.data(), pairs.data(),
                         tokens.data(),  B,             0.1f,      {}};
        const Numbers numbers{1e-3f, 1e-3f, 1e-8f, 1e-8f, 0.9f, 0.1f, 0.99f, 0.01f, 1.5f, 1.5f, 0.1f, 1.0f,
                              1e-3f, 1e-3f, 1.0f,  1.0f};
        Ints slots(F, -1);
        slots[F / 2] = 0;
        const Values aux_row = random(D), aux_bias = random(1);
        const Aux aux{slots.data(), aux_row.data(), aux_bias.data(), aux_row.data(), aux_row.data()};
        out.push_back(static_cast<float>(update(weights, rows, aux, numbers, threads, isa)));
        Values g[] = {Values(F * D), Values(F), Values(F * D), Values(D)};
        const Grads grads{g[0].data(), g[1].data(), g[2].data(), g[3].data()};
        out.push_back(static_cast<float>(row_grads(weights, rows, Aux{}, numbers, threads, isa, grads)));
        adam_rows(weights, grads, 0.5f, numbers, threads, isa);
        keep(error), keep(squares);

        // Rows of W_enc of another length than those of W_dec, free and untied, with a `Given`.
        Values grad_acts(B * K), sums(F);
        grad_top_acts(code, error.data(), W_dec.data(), B, D, B * K, threads, isa, grad_acts.data());
        sum_entries(offsets.data(), pairs.data(), grad_acts.data(), F, threads, sums.data());
        keep(grad_acts), keep(sums);
        Weights other_widths = weights;
        other_widths.D_in = D / 2 + 1;
        Batch more = rows;
        more.centred = narrow.data();
        more.given = {entries.data(), latents.data(), latents.data(), push_row.data(), pull.data(), D};
        Numbers free = numbers;
        free.unit = free.tied = 0;
        out.push_back(static_cast<float>(update(other_widths, more, Aux{}, free, threads, isa)));
    }
    keep(W_enc), keep(W_dec), keep(b_enc), keep(b_dec), keep(moments);
    return out;
}

// Every selection of the screened encoder, with and without rows whose latents are all scored.
static Values encode(std::size_t B, std::size_t D, std::size_t F, std::size_t K, int threads, Isa isa) {
    rng.seed(7);
    const Values x = random(B * D), W_enc = random(F * D), b_enc = random(F), thresholds(F, 2.0f * std::sqrt(D));
    ScreenedEncoder encoder(isa);
    Values out;
    const auto keep = [&](const auto& part) { out.insert(out.end(), part.begin(), part.end()); };
    const auto check = [](std::ptrdiff_t status) {
        if (status != ScreenedEncoder::FINITE) std::exit(1);
    };
    for (const std::size_t limit : {F / 8, std::size_t{0}}) {
        const Product product{x.data(), W_enc.data(), b_enc.data(), B, F, D, limit, B * F, threads};
        Values acts(B * K);
        Ints indices(B * K), row_offsets(B + 1);
        check(encoder.top_k(product, K, acts.data(), indices.data()));
        keep(acts), keep(indices);
        check(encoder.batch_topk(product, K, acts.data(), indices.data(), row_offsets.data()));
        keep(acts), keep(indices), keep(row_offsets);
        if (F % K == 0) check(encoder.group_max(product, K, acts.data(), indices.data()));
        keep(acts), keep(indices);
        check(encoder.above(product, thresholds.data(), row_offsets.data()));
        acts.resize(row_offsets.back()), indices.resize(acts.size());
        if (encoder.write_above(acts.size(), acts.data(), indices.data()) != acts.size()) std::exit(1);
        keep(acts), keep(indices), keep(row_offsets);
        Product little = product;
        little.most = 0;
        if (encoder.batch_topk(little, K, acts.data(), indices.data(), row_offsets.data()) !=
            ScreenedEncoder::TOO_MANY) {
            std::exit(1);
        }
    }
    if (!std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(out.size() / 2),
                    out.begin() + static_cast<std::ptrdiff_t>(out.size() / 2))) {
        std::exit(1);
    }
    return out;
}

// A row of 16 that is rounded to whole numbers, and that 0.49 is left of each of but the first.
static void worst_row(const Levels& levels, const Mixing& mixing, float* x) {
    const bool bounded = levels.sum < 16 * levels.most;
    for (std::size_t i = 1; i < 16; ++i) {
        const std::size_t whole = !bounded ? rng() % 126 : i % 4 < 2 ? 15 + rng() % 15 : rng() % 10;
        x[i] = static_cast<float>(whole) + 0.49f;
    }
    x[0] = static_cast<float>(levels.most);
    if (!bounded) return;
    const auto sign = [&](std::size_t i) { return mixing.signs()[i] * mixing.signs()[mixing.width() + i]; };
    float size = 0, sum = 0;  // of the first half of the vector but its first entry, which takes them to their bound
    for (std::size_t i = 1; i < 16; ++i) {
        if (i % 4 < 2) size += x[i], sum += sign(i) * x[i];
    }
    const float left = (static_cast<float>(levels.sum - 8) - size - std::fabs(sum)) / 2;
    x[0] = sum < 0 ? -sign(0) * left : sign(0) * left;
}

// The largest |approx - exact| of screened products, as a share of its bound. `worst`: what rounding leaves of each row
// of x points along each row of W_enc, where Cauchy and Schwarz have an equality.
static double error_of_screen(std::size_t D, bool worst, Isa isa) {
    rng.seed(7);
    const std::size_t B = 13, F = 200, stride = 256;
    Values x = random(B * D), W_enc = random(F * D), b_enc = random(F);
    if (worst) {
        const Mixing mixing(D);
        for (std::size_t b = 0; b < B; ++b) worst_row(tiles_for(isa).x, mixing, &x[b * D]);
        std::fill(W_enc.begin(), W_enc.end(), 1.0f);
    }
    ScreenWeights weights(isa);
    if (!weights.set(W_enc.data(), b_enc.data(), F, D, 3)) std::exit(1);
    ScreenRows rows(B, weights.mixing.width());
    Values scratch(weights.mixing.width()), approx(B * stride);
    rows.set(weights, x.data(), B, isa, scratch.data());
    screen(weights, rows, B, 0, stride / PANEL, isa, approx.data(), stride);
    double largest = 0;
    for (std::size_t b = 0; b < B; ++b) {
        for (std::size_t f = 0; f < F; ++f) {
            double exact = b_enc[f];
            for (std::size_t d = 0; d < D; ++d) exact += static_cast<double>(x[b * D + d]) * W_enc[f * D + d];
            const double bound = static_cast<double>(rows.by_norm[b]) * weights.norm[f] +
                                 static_cast<double>(rows.by_rest[b]) * weights.rest[f] + weights.bias_error;
            largest = std::max(largest, std::fabs(approx[b * stride + f] - exact) / bound);
        }
    }
    return largest;
}

int main() {
    const std::size_t sizes[][4] = {{1, 1, 1, 1}, {3, 5, 70, 7}, {150, 33, 300, 12}, {40, 200, 65, 65}};
    for (const Isa isa : supported_isas()) {
        for (const auto& s : sizes) {
            const Values one = step(s[0], s[1], s[2], s[3], 1, isa), many = step(s[0], s[1], s[2], s[3], 5, isa);
            if (one.size() != many.size() || std::memcmp(one.data(), many.data(), 4 * one.size())) {
                std::printf("differs at %zu, %zu, %zu, %zu\n", s[0], s[1], s[2], s[3]);
                return 1;
            }
        }
        const std::size_t encoded[][4] = {{1, 16, 32, 1}, {150, 33, 300, 9}, {40, 200, 1100, 5}};
        for (const auto& s : encoded) {
            if (encode(s[0], s[1], s[2], s[3], 1, isa) != encode(s[0], s[1], s[2], s[3], 5, isa)) {
                std::printf("encoder differs at %zu, %zu, %zu, %zu\n", s[0], s[1], s[2], s[3]);
                return 1;
            }
        }
        const double worst = error_of_screen(16, true, isa);  // one vector: no mixing, only signs
        if (worst < 0.95 || worst > 1 || error_of_screen(576, false, isa) > 0.5) {
            std::printf("errors of screening are %f of their bounds at worst\n", worst);
            return 1;
        }
    }
    std::puts("ok");
}
