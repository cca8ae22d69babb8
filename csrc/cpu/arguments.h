// What the bindings of this folder check of their arguments. The code behind them trusts it.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <unordered_set>
#include <vector>

#include "../checks.h"
#include "isa.h"

namespace saefast {

using std::int32_t;
using Sizes = std::vector<py::ssize_t>;

inline const char* name_of(Isa isa) {
    return isa == Isa::vnni      ? "vnni"
           : isa == Isa::avx512  ? "avx512"
           : isa == Isa::avxvnni ? "avxvnni"
           : isa == Isa::avx2    ? "avx2"
           : isa == Isa::i8mm    ? "i8mm"
           : isa == Isa::dotprod ? "dotprod"
                                 : "plain";
}

// Those of `isas` that the environment leaves: SAEFAST_ISA names the first that may be used, as if the machine had no better.
inline std::vector<Isa> usable_isas() {
    const auto isas = supported_isas();
    const char* const most = std::getenv("SAEFAST_ISA");
    if (!most || !*most) return isas;
    const auto first = std::find_if(isas.begin(), isas.end(), [&](Isa isa) { return name_of(isa) == std::string(most); });
    if (first != isas.end()) return {first, isas.end()};
    std::string names;
    for (const Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
    throw py::value_error("SAEFAST_ISA: expected one of " + names + ", got '" + most + "'");
}

inline py::list isa_names() {
    py::list names;
    for (const Isa isa : usable_isas()) names.append(name_of(isa));
    return names;
}

inline Isa parse_isa(const std::string& name) {
    const auto isas = usable_isas();
    if (name == "auto") return isas.front();
    for (const Isa isa : isas) {
        if (name == name_of(isa)) return isa;
    }
    throw py::value_error("isa: expected 'auto' or one of " + text(isa_names()) + ", got '" + name + "'");
}

inline void check_range(const std::string& name, py::ssize_t value, py::ssize_t low, py::ssize_t high,
                 const std::string& note = "") {
    if (value >= low && value <= high) return;
    throw py::value_error(name + ": expected " + std::to_string(low) + " to " + std::to_string(high) + note +
                          ", got " + std::to_string(value));
}

inline void check_threads(int threads) {
    constexpr int MOST = 4096;  // each takes memory of its own
    check_range("threads", threads, 1, MOST);
}

inline void check_indexable(const std::string& name, py::ssize_t n) {
    if (n <= std::numeric_limits<int32_t>::max()) return;
    throw py::value_error(name + ": expected fewer than 2^31, got " + std::to_string(n));
}

// `array` as a contiguous T array of exactly these sizes.
template <typename T>
py::array_t<T> sized(const py::handle& array, const std::string& name, const Sizes& sizes) {
    auto out = checked<T>(array, name, static_cast<py::ssize_t>(sizes.size()));
    if (!std::equal(sizes.begin(), sizes.end(), out.shape())) {
        throw py::value_error(name + ": expected shape " + text(py::tuple(py::cast(sizes))) + ", got " +
                              text(out.attr("shape")));
    }
    return out;
}

template <typename T>
const T* input(const py::handle& array, const std::string& name, const Sizes& sizes) {
    return sized<T>(array, name, sizes).data();
}

template <typename T>
T* output(const py::handle& array, const std::string& name, const Sizes& sizes) {
    return sized<T>(array, name, sizes).mutable_data();  // raises if it may not be written
}

inline void check_indices(const std::string& name, const int32_t* values, py::ssize_t n, py::ssize_t limit) {
    const auto wrong = [limit](int32_t value) { return value < 0 || value >= limit; };
    bool any = false;
    for (py::ssize_t i = 0; i < n; ++i) any |= wrong(values[i]);  // all of them, so that vectors can do it
    if (!any) return;
    const int32_t* const first = std::find_if(values, values + n, wrong);
    throw py::value_error(name + ": expected 0 to " + std::to_string(limit - 1) + ", got " + std::to_string(*first) +
                          " at " + std::to_string(first - values));
}

// Offsets that begin at 0, never fall and end at `limit` or below.
inline void check_offsets(const std::string& name, const int32_t* values, py::ssize_t n, py::ssize_t limit) {
    for (py::ssize_t i = 0; i < n; ++i) {
        const bool ok = i == 0 ? values[0] == 0 : values[i] >= values[i - 1] && values[i] <= limit;
        if (ok) continue;
        throw py::value_error(name + ": expected numbers that rise from 0 to at most " + std::to_string(limit) +
                              ", got " + std::to_string(values[i]) + " at " + std::to_string(i));
    }
}

// One call at a time for each object: what it holds is not for two threads. Both ends hold the interpreter's lock.
class Turn {
public:
    explicit Turn(const void* object) : object_(object) {
        if (!taken().insert(object).second) {
            throw py::value_error("expected one call at a time, another thread is in one of this object");
        }
    }
    ~Turn() { taken().erase(object_); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    static std::unordered_set<const void*>& taken() {
        static std::unordered_set<const void*> objects;
        return objects;
    }
    const void* object_;
};

}  // namespace saefast
