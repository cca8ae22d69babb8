// What the bindings of cpu/ and stream/ check at the boundary, once; the code behind them trusts it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace saefast {

namespace py = pybind11;

inline std::string text(const py::handle& object) { return py::str(object); }

// `object` as the array that it is: of a list pybind11 would make a copy, and addresses in it would not last.
inline py::array as_array(const py::handle& object, const std::string& name) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    throw py::type_error(name + ": expected an array, got " + text(py::type::handle_of(object).attr("__name__")));
}

// `object` as a C-contiguous array of T with `ndim` dimensions. Nothing is converted or copied.
template <typename T>
py::array_t<T> checked(const py::handle& object, const std::string& name, py::ssize_t ndim) {
    const py::array array = as_array(object, name);
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
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T)) {
        throw py::value_error(name + ": expected an address that is a multiple of " + std::to_string(alignof(T)));
    }
    return py::reinterpret_borrow<py::array_t<T>>(array);
}

// The bytes of a contiguous array.
struct Memory {
    std::string name;
    const char *begin, *end;
};

inline Memory memory_of(const std::string& name, const py::array& array) {
    const auto* begin = static_cast<const char*>(array.data());
    return {name, begin, begin + array.nbytes()};
}

// Arrays that are written share no memory with those that are read, nor with each other: what was checked would change.
inline void check_apart(const std::vector<Memory>& written, std::vector<Memory> read) {
    for (const Memory& one : written) {
        for (const Memory& other : read) {
            const bool is_empty = one.begin == one.end || other.begin == other.end;
            if (is_empty || one.end <= other.begin || other.end <= one.begin) continue;
            throw py::value_error(one.name + ": expected memory of its own, got that of " + other.name);
        }
        read.push_back(one);
    }
}

}  // namespace saefast
