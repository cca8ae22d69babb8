// What the two files of bindings of the streaming buffer share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "rows.h"

namespace saefast {

stream::DType parse_dtype(const std::string& name);
void bind_stream_parts(pybind11::module_& s);  // in bind_parts.cpp

}  // namespace saefast
