// What the two files of bindings of the streaming buffer share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "rows.h"

namespace saefast {

inline stream::DType parse_dtype(const std::string& name) {
    if (name == "float16") return stream::DType::f16;
    if (name == "bfloat16") return stream::DType::bf16;
    if (name == "float32") return stream::DType::f32;
    if (name == "float64") return stream::DType::f64;
    throw pybind11::value_error("dtype: expected float16, bfloat16, float32 or float64, got '" + name + "'");
}

void bind_stream_parts(pybind11::module_& s);  // in bind_parts.cpp

}  // namespace saefast
