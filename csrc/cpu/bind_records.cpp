// The bindings of what is recorded of latents.

#include "arguments.h"
#include "records.h"

namespace saefast {
namespace {

using std::int64_t;

// (first_slot, n_slots, offsets, slots, acts) of each block; of the offsets, those of latents first to end are looked at.
std::vector<CodeBlock> parse_blocks(const std::vector<py::tuple>& blocks, int64_t n_slots, int64_t first, int64_t end) {
    std::vector<CodeBlock> parsed;
    int64_t next = 0;
    for (const py::tuple& given : blocks) {
        if (given.size() != 5) throw py::value_error("blocks: expected five parts each, got " + std::to_string(given.size()));
        const int64_t first_slot = given[0].cast<int64_t>(), length = given[1].cast<int64_t>();
        check_range("blocks: first_slot", first_slot, next, next);
        check_range("blocks: n_slots", length, 0, std::min<int64_t>(n_slots - next, std::numeric_limits<int32_t>::max()));
        next += length;
        const auto offsets = checked<int64_t>(given[2], "blocks: offsets", 1);
        const auto slots = checked<int32_t>(given[3], "blocks: slots", 1);
        const py::ssize_t N = slots.shape(0);
        const float* acts = input<float>(given[4], "blocks: acts", {N});
        check_range("end", end, 0, offsets.shape(0) - 1, " (the latents of each block)");
        check_range("first", first, 0, end);
        for (int64_t f = first; f <= end; ++f) {
            check_range("blocks: offsets", offsets.data()[f], f > first ? offsets.data()[f - 1] : 0, N);
        }
        parsed.push_back({first_slot, length, offsets.data(), slots.data(), acts});
    }
    check_range("blocks: the slots of all", next, n_slots, n_slots);
    return parsed;
}

// (contexts [m, L], encoded [m, L] uint8, separators [s] int32, n_rows)
RecordedText parse_text(const py::tuple& text) {
    if (text.size() != 4) throw py::value_error("text: expected four parts, got " + std::to_string(text.size()));
    const auto contexts = checked<int32_t>(text[0], "text: contexts", 2);
    const py::ssize_t m = contexts.shape(0), L = contexts.shape(1);
    check_range("text: context_length", L, 1, std::numeric_limits<std::int16_t>::max());
    check_range("text: contexts", m, 1, (int64_t{1} << 32) / L, " (of this length)");
    const auto* encoded = input<std::uint8_t>(text[1], "text: encoded", {m, L});
    const auto separators = checked<int32_t>(text[2], "text: separators", 1);
    return {contexts.data(), encoded, static_cast<std::size_t>(m), static_cast<std::size_t>(L),
            {separators.data(), separators.data() + separators.shape(0)}, text[3].cast<int64_t>()};
}

RecordNumbers parse_record_numbers(const std::vector<int64_t>& numbers) {
    constexpr std::size_t N = 11;
    if (numbers.size() != N) throw py::value_error("numbers: expected 11, got " + std::to_string(numbers.size()));
    for (std::size_t i = 0; i < N; ++i) check_range("numbers", numbers[i], i == 7 ? 1 : 0, 32767);
    const auto at = [&](std::size_t i) { return static_cast<std::size_t>(numbers[i]); };
    return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), numbers[8], numbers[9],
            static_cast<std::uint32_t>(numbers[10])};
}

void check_slots(const int64_t* slots, py::ssize_t n, int64_t n_slots) {
    for (py::ssize_t i = 0; i < n; ++i) check_range("slots", slots[i], 0, n_slots - 1);
}

void py_select_records(const std::vector<py::tuple>& blocks, int64_t first, int64_t end, const py::tuple& text_parts,
                       const std::vector<int64_t>& number_list, py::array statistics, py::array histogram,
                       py::array slots, py::array acts, int threads) {
    const RecordedText text = parse_text(text_parts);
    const RecordNumbers numbers = parse_record_numbers(number_list);
    const std::vector<CodeBlock> parsed = parse_blocks(blocks, text.n_slots(), first, end);
    const auto n = static_cast<py::ssize_t>(end - first);
    const auto E = static_cast<py::ssize_t>(numbers.examples());
    auto* s = output<double>(statistics, "statistics", {n, static_cast<py::ssize_t>(STATISTICS)});
    auto* h = output<int64_t>(histogram, "histogram", {n, static_cast<py::ssize_t>(numbers.n_bins)});
    auto* where = output<int64_t>(slots, "slots", {n, E});
    auto* a = output<float>(acts, "acts", {n, E});
    check_threads(threads);
    int64_t bad;
    {
        py::gil_scoped_release release;
        bad = select_records(parsed, first, end, text, numbers, threads, s, h, where, a);
    }
    if (bad >= 0) {
        throw py::value_error("blocks: expected ascending slots with positive activations, got others of latent " +
                              std::to_string(bad));
    }
}

void py_record_windows(const py::tuple& text_parts, const std::vector<int64_t>& number_list, const py::array& first_document,
                       const py::array& slots, py::array windows, py::array documents) {
    const RecordedText text = parse_text(text_parts);
    const RecordNumbers numbers = parse_record_numbers(number_list);
    const auto* of_context = input<int64_t>(first_document, "first_document", {static_cast<py::ssize_t>(text.m)});
    const auto where = checked<int64_t>(slots, "slots", 1);
    const py::ssize_t n = where.shape(0);
    check_slots(where.data(), n, text.n_slots());
    auto* w = output<int32_t>(windows, "windows", {n, 2});
    auto* d = output<int64_t>(documents, "documents", {n});
    py::gil_scoped_release release;
    record_windows(text, numbers, of_context, where.data(), static_cast<std::size_t>(n), w, d);
}

// Counts [n] without `at` and `acts`; with them, what is written where `counts_or_offsets` [n + 1] says.
void py_window_acts(const std::vector<py::tuple>& blocks, int64_t n_slots, int64_t L, const py::array& latents,
                    const py::array& slots, const py::array& windows, py::array counts_or_offsets,
                    const std::optional<py::array>& at, const std::optional<py::array>& acts, int threads) {
    const auto of = checked<int32_t>(latents, "latents", 1);
    const py::ssize_t n = of.shape(0);
    const auto lowest = n ? *std::min_element(of.data(), of.data() + n) : 0;
    const auto highest = n ? *std::max_element(of.data(), of.data() + n) : -1;
    check_range("context_length", L, 1, std::numeric_limits<std::int16_t>::max());
    const std::vector<CodeBlock> parsed = parse_blocks(blocks, n_slots, lowest, int64_t{highest} + 1);
    const auto* where = input<int64_t>(slots, "slots", {n});
    check_slots(where, n, n_slots);
    const auto* w = input<int32_t>(windows, "windows", {n, 2});
    for (py::ssize_t i = 0; i < n; ++i) {
        check_range("windows", w[2 * i], 0, L);
        check_range("windows", w[2 * i + 1], w[2 * i], L);
    }
    check_threads(threads);
    const auto size = static_cast<std::size_t>(n), length = static_cast<std::size_t>(L);
    if (!at || !acts) {
        auto* counts = output<int32_t>(counts_or_offsets, "counts", {n});
        py::gil_scoped_release release;
        window_counts(parsed, length, of.data(), where, w, size, threads, counts);
        return;
    }
    const auto* offsets = input<int32_t>(counts_or_offsets, "offsets", {n + 1});
    const py::ssize_t total = checked<float>(*acts, "acts", 1).shape(0);
    check_offsets("offsets", offsets, n + 1, total);
    auto* places = output<std::int16_t>(*at, "at", {total});
    auto* values = output<float>(*acts, "acts", {total});
    py::gil_scoped_release release;
    window_acts(parsed, length, of.data(), where, w, size, offsets, threads, places, values);
}

}  // namespace

void bind_records(py::module_& m) {
    using py::arg;
    m.def("select_records", &py_select_records, arg("blocks"), arg("first"), arg("end"), arg("text"), arg("numbers"),
          arg("statistics"), arg("histogram"), arg("slots"), arg("acts"), arg("threads"),
          "Statistics and examples of latents, see saefast.interp.records.select.");
    m.def("record_windows", &py_record_windows, arg("text"), arg("numbers"), arg("first_document"), arg("slots"),
          arg("windows"), arg("documents"), "The window and the document of each slot.");
    m.def("window_acts", &py_window_acts, arg("blocks"), arg("n_slots"), arg("context_length"), arg("latents"),
          arg("slots"), arg("windows"), arg("counts_or_offsets"), arg("at").none(true), arg("acts").none(true),
          arg("threads"), "How many entries are in each window, or, with `at` and `acts`, these entries.");
}

}  // namespace saefast
