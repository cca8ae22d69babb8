// The bindings of records: the code comes as a list of (first_slot, offsets, slots, acts), the text as its ends of
// documents and its tokens with a row, [m, L] uint8 each.

#include <array>
#include <cmath>

#include "arguments.h"
#include "records.h"

namespace saefast {
namespace {

using std::int64_t;
using std::uint8_t;

// Blocks in the order of their slots, of which the latents [first, end) are looked at. The tuples are kept: another thread
// may change the list.
struct Blocks {
    std::vector<CodeBlock> code;
    std::vector<py::tuple> kept;
};

int64_t parse_first_slot(const py::handle& value) {
    try {
        return py::cast<int64_t>(value);
    } catch (const py::cast_error&) {
        throw py::type_error("blocks: expected an integer as first_slot, got " +
                             text(py::type::handle_of(value).attr("__name__")));
    }
}

Blocks parse_blocks(const py::list& blocks, py::ssize_t first, py::ssize_t end) {
    Blocks found;
    auto& out = found.code;
    for (const py::handle& block : blocks) {
        if (!py::isinstance<py::tuple>(block) || py::len(block) != 4) {
            throw py::value_error("blocks: expected (first_slot, offsets, slots, acts)");
        }
        const auto parts = py::reinterpret_borrow<py::tuple>(block);
        const int64_t first_slot = parse_first_slot(parts[0]);
        const auto offsets = checked<int64_t>(parts[1], "offsets", 1);
        const auto slots = checked<int32_t>(parts[2], "slots", 1);
        const float* acts = input<float>(parts[3], "acts", {slots.size()});
        check_range("first_slot", first_slot, out.empty() ? 0 : out.back().first_slot + 1, int64_t{1} << 32);
        if (end > first) check_range("latents: the end", end, 0, offsets.size() - 1);
        for (py::ssize_t f = first; f < end; ++f) {
            const int64_t begin = offsets.data()[f], next = offsets.data()[f + 1];
            if (begin >= 0 && begin <= next && next <= slots.size()) continue;
            throw py::value_error("offsets: expected numbers that rise from 0 to at most " + std::to_string(slots.size()) +
                                  ", got " + std::to_string(begin) + " and " + std::to_string(next) + " at " +
                                  std::to_string(f));
        }
        out.push_back({first_slot, offsets.data(), slots.data(), acts});
        found.kept.push_back(parts);
    }
    return found;
}

std::vector<Memory> memory_of_blocks(const Blocks& blocks) {
    std::vector<Memory> found;
    for (const py::tuple& parts : blocks.kept) {
        for (const std::size_t i : {1, 2, 3}) found.push_back(memory_of("blocks", as_array(parts[i], "blocks")));
    }
    return found;
}

py::value_error damaged_code(int64_t latent) {
    return py::value_error("codes: expected rising slots of the text and positive activations, got others of latent " +
                           std::to_string(latent));
}

TextShape parse_text(const py::array& ends, const py::array& encoded, py::ssize_t n_rows) {
    const auto documents = checked<uint8_t>(ends, "ends", 2);
    const py::ssize_t m = documents.shape(0), L = documents.shape(1);
    check_range("ends: the length of a context", L, 1, std::numeric_limits<int32_t>::max());
    check_range("ends: the number of tokens", documents.size(), 0, py::ssize_t{1} << 32);
    check_range("n_rows", n_rows, 0, documents.size());
    return {documents.data(), input<uint8_t>(encoded, "encoded", {m, L}), static_cast<std::size_t>(m),
            static_cast<std::size_t>(L), static_cast<std::size_t>(n_rows)};
}

// n numbers from 0 to `most`.
const int64_t* parse_numbers(const py::array& array, const std::string& name, py::ssize_t n, py::ssize_t most) {
    const int64_t* values = input<int64_t>(array, name, {n});
    if (n == 0) return values;
    const auto [low, high] = std::minmax_element(values, values + n);
    for (const int64_t value : {*low, *high}) check_range(name, value, 0, most);
    return values;
}

const int64_t* parse_slots(const py::array& slots, py::ssize_t n, const TextShape& text) {
    return parse_numbers(slots, "slots", n, static_cast<py::ssize_t>(text.m * text.L) - 1);
}

Window parse_window(py::ssize_t before, py::ssize_t after) {
    check_range("before", before, 0, std::numeric_limits<std::int16_t>::max());
    check_range("after", after, 0, std::numeric_limits<std::int16_t>::max());
    return {static_cast<std::size_t>(before), static_cast<std::size_t>(after)};
}

// (n_top, n_intervals, per_interval, n_quantiles, per_quantile, n_random, n_inactive, n_bins, before, after)
Wanted parse_wanted(const std::array<py::ssize_t, 10>& numbers, std::uint32_t seed) {
    std::array<std::size_t, 8> n{};
    for (std::size_t i = 0; i < n.size(); ++i) {
        check_range("wanted: number " + std::to_string(i), numbers[i], i == 7, std::numeric_limits<std::int16_t>::max());
        n[i] = static_cast<std::size_t>(numbers[i]);
    }
    return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], parse_window(numbers[8], numbers[9]), seed};
}

void py_select(const py::list& blocks, py::ssize_t first, const py::array& ends, const py::array& encoded,
               py::ssize_t n_rows, const std::array<py::ssize_t, 10>& numbers, std::uint32_t seed, py::array statistics,
               py::array histogram, py::array slots, py::array acts, int threads) {
    const py::ssize_t n = checked<double>(statistics, "statistics", 2).shape(0);
    check_range("first", first, 0, std::numeric_limits<int32_t>::max());
    const Blocks parsed = parse_blocks(blocks, first, first + n);
    const TextShape text = parse_text(ends, encoded, n_rows);
    const Wanted wanted = parse_wanted(numbers, seed);
    const auto E = static_cast<py::ssize_t>(wanted.examples()), bins = static_cast<py::ssize_t>(wanted.n_bins);
    const SelectedOut out{output<double>(statistics, "statistics", {n, static_cast<py::ssize_t>(STATISTICS)}),
                          output<int64_t>(histogram, "histogram", {n, bins}), output<int64_t>(slots, "slots", {n, E}),
                          output<float>(acts, "acts", {n, E})};
    check_threads(threads);
    auto read = memory_of_blocks(parsed);
    read.insert(read.end(), {memory_of("ends", ends), memory_of("encoded", encoded)});
    check_apart({memory_of("statistics", statistics), memory_of("histogram", histogram), memory_of("slots", slots),
                 memory_of("acts", acts)},
                read);
    int64_t damaged;
    {
        py::gil_scoped_release release;
        damaged = select_examples(parsed.code, static_cast<std::size_t>(first), static_cast<std::size_t>(n), text, wanted,
                                  threads, out);
    }
    if (damaged >= 0) throw damaged_code(damaged);
}

void py_windows(const py::array& slots, const py::array& ends, py::ssize_t before, py::ssize_t after, py::array windows) {
    const py::ssize_t n = slots.size();
    const TextShape text = parse_text(ends, ends, 0);
    const int64_t* at = parse_slots(slots, n, text);
    const Window window = parse_window(before, after);
    int32_t* out = output<int32_t>(windows, "windows", {n, 2});
    check_apart({memory_of("windows", windows)}, {memory_of("slots", slots), memory_of("ends", ends)});
    py::gil_scoped_release release;
    token_windows(at, static_cast<std::size_t>(n), text, window, out);
}

void py_documents(const py::array& slots, const py::array& ends, const py::array& first_document, py::array documents) {
    const py::ssize_t n = slots.size();
    const TextShape text = parse_text(ends, ends, 0);
    const int64_t* at = parse_slots(slots, n, text);
    const auto m = static_cast<py::ssize_t>(text.m);
    const int64_t* firsts = parse_numbers(first_document, "first_document", m, static_cast<py::ssize_t>(text.m * text.L));
    int64_t* out = output<int64_t>(documents, "documents", {n});
    check_apart({memory_of("documents", documents)},
                {memory_of("slots", slots), memory_of("ends", ends), memory_of("first_document", first_document)});
    py::gil_scoped_release release;
    token_documents(at, static_cast<std::size_t>(n), text, firsts, out);
}

// The entries of latents[i] in the slots [bounds[i, 0], bounds[i, 1]), as slots from bounds[i, 0] on.
py::tuple py_entries_in(const py::list& blocks, const py::array& latents, const py::array& bounds) {
    const py::ssize_t n = latents.size();
    const int64_t* of = parse_numbers(latents, "latents", n, std::numeric_limits<int32_t>::max());
    const int64_t* at = input<int64_t>(bounds, "bounds", {n, 2});
    const auto [first, last] = std::minmax_element(of, of + n);
    const Blocks parsed = n ? parse_blocks(blocks, *first, *last + 1) : Blocks();
    py::array_t<int32_t> offsets(n + 1);
    int32_t* starts = offsets.mutable_data();
    std::vector<Span> spans(static_cast<std::size_t>(n));
    int64_t total = starts[0] = 0;
    for (py::ssize_t i = 0; i < n; ++i) {
        const int64_t begin = at[2 * i], end = at[2 * i + 1];
        if (begin < 0 || begin > int64_t{1} << 32 || end < begin || end - begin > std::numeric_limits<std::int16_t>::max()) {
            throw py::value_error("bounds: expected some slots, got " + std::to_string(begin) + " to " + std::to_string(end));
        }
        Span& span = spans[static_cast<std::size_t>(i)];
        span = entries_in(parsed.code, static_cast<std::size_t>(of[i]), begin, end);
        total += span.end - span.begin;
        if (total > std::numeric_limits<int32_t>::max()) throw py::value_error("bounds: expected fewer than 2^31 entries");
        starts[i + 1] = static_cast<int32_t>(total);
    }
    py::array_t<std::int16_t> places(total);
    py::array_t<float> acts(total);
    std::int16_t* place = places.mutable_data();
    float* act = acts.mutable_data();
    for (py::ssize_t i = 0; i < n; ++i) {
        const Span& span = spans[static_cast<std::size_t>(i)];
        int64_t last = at[2 * i] - 1;
        for (int64_t e = span.begin; e < span.end; ++e) {
            const int64_t slot = span.block->first_slot + span.block->slots[e];
            const float value = span.block->acts[e];
            if (slot <= last || slot >= at[2 * i + 1] || !(value > 0) || std::isinf(value)) throw damaged_code(of[i]);
            last = slot;
            *place++ = static_cast<std::int16_t>(slot - at[2 * i]);
            *act++ = value;
        }
    }
    return py::make_tuple(offsets, places, acts);
}

}  // namespace

void bind_records(py::module_& m) {
    using py::arg;
    m.def("select_examples", &py_select, arg("blocks"), arg("first"), arg("ends"), arg("encoded"), arg("n_rows"),
          arg("wanted"), arg("seed"), arg("statistics"), arg("histogram"), arg("slots"), arg("acts"), arg("threads"),
          "Spec: saefast.interp.records.select; statistics [n, 8], histogram, slots and acts [n, E] are written.");
    m.def("token_windows", &py_windows, arg("slots"), arg("ends"), arg("before"), arg("after"), arg("windows"),
          "Spec: saefast.interp.records.text.Text.window; windows [n, 2] are written.");
    m.def("token_documents", &py_documents, arg("slots"), arg("ends"), arg("first_document"), arg("documents"),
          "Spec: saefast.interp.records.text.Text.documents; documents [n] are written.");
    m.def("entries_in", &py_entries_in, arg("blocks"), arg("latents"), arg("bounds"),
          "Spec: saefast.interp.records.tables.window_acts; returns offsets [n + 1], places and acts.");
}

}  // namespace saefast
