// saefast._C: numpy arrays in, numpy arrays out. Every argument is checked here, once; cpu/ trusts them.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "cpu/topk.h"

namespace py = pybind11;
using saefast::Isa;

namespace {

std::string text(const py::handle& object) { return py::str(object); }

// `array` as a C-contiguous array of T with `ndim` dimensions. Nothing is converted or copied.
template <typename T>
py::array_t<T> checked(const py::array& array, const std::string& name, py::ssize_t ndim) {
    if (!py::array_t<T>::check_(array)) {
        throw py::type_error(name + ": expected dtype " + text(py::dtype::of<T>()) + ", got " +
                             text(array.dtype()));
    }
    if (array.ndim() != ndim) {
        throw py::value_error(name + ": expected " + std::to_string(ndim) + " dimensions, got shape " +
                              text(array.attr("shape")));
    }
    if (!(array.flags() & py::array::c_style)) {
        throw py::value_error(name + ": expected a C-contiguous array, got strides " +
                              text(array.attr("strides")));
    }
    return py::reinterpret_borrow<py::array_t<T>>(array);
}

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

py::tuple topk(const py::array& pre_acts_any, py::ssize_t k, int threads, const std::string& isa_name) {
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

PYBIND11_MODULE(_C, m) {
    m.doc() = "The C++ ops of saefast.native.";
    m.def("isas", &isa_names, "The instruction sets that this machine runs, the fastest first.");
    m.def("topk", &topk, py::arg("pre_acts"), py::arg("k"), py::arg("threads"), py::arg("isa") = "auto",
          "pre_acts [B, F] float32 -> top_acts [B, k] float32, top_indices [B, k] int32"
          " (spec: saefast.reference.topk); uses at most `threads` threads.");
}
