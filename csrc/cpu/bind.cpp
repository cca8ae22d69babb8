// The bindings of the CPU engine: numpy arrays in, numpy arrays out.

#include "../bindings.h"

#include <cstdint>
#include <limits>
#include <string>

#include "../checks.h"
#include "topk.h"

namespace saefast {
namespace {

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "plain"; }

py::list isa_names() {
    py::list names;
    for (const Isa isa : saefast::supported_isas()) names.append(name_of(isa));
    return names;
}

Isa parse_isa(const std::string& name) {
    const auto isas = saefast::supported_isas();
    if (name == "auto") return isas.front();
    for (const Isa isa : isas) {
        if (name == name_of(isa)) return isa;
    }
    throw py::value_error("isa: expected 'auto' or one of " + text(isa_names()) + ", got '" + name + "'");
}

py::tuple py_topk(const py::array& pre_acts_any, py::ssize_t k, int threads, const std::string& isa_name) {
    const auto pre_acts = checked<float>(pre_acts_any, "pre_acts", 2);
    const py::ssize_t B = pre_acts.shape(0), F = pre_acts.shape(1);
    const Isa isa = parse_isa(isa_name);
    if (F > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("pre_acts: expected fewer than 2^31 columns, got " + std::to_string(F));
    }
    if (k < 1 || k > F) {
        throw py::value_error("k: expected 1 to " + std::to_string(F) + " (the columns of pre_acts), got " +
                              std::to_string(k));
    }
    if (threads < 1) throw py::value_error("threads: expected at least 1, got " + std::to_string(threads));

    py::array_t<float> top_acts({B, k});
    py::array_t<std::int32_t> top_indices({B, k});
    const float* in = pre_acts.data();
    float* acts = top_acts.mutable_data();
    std::int32_t* indices = top_indices.mutable_data();
    std::ptrdiff_t nan_row;
    {
        py::gil_scoped_release release;
        nan_row = saefast::topk(in, B, F, k, threads, isa, acts, indices);
    }
    if (nan_row >= 0) {
        throw py::value_error("pre_acts: expected no NaN, got one in row " + std::to_string(nan_row));
    }
    return py::make_tuple(top_acts, top_indices);
}

}  // namespace

void bind_cpu(py::module_& m) {
    m.def("isas", &isa_names, "The instruction sets that this machine runs, the fastest first.");
    m.def("topk", &py_topk, py::arg("pre_acts"), py::arg("k"), py::arg("threads"), py::arg("isa") = "auto",
          "pre_acts [B, F] float32 -> top_acts [B, k] float32, top_indices [B, k] int32"
          " (spec: saefast.reference.topk); uses at most `threads` threads.");
}

}  // namespace saefast
