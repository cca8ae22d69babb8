// The parts of saefast._C, one function for each folder.
#pragma once

#include <pybind11/pybind11.h>

namespace saefast {

void bind_cpu(pybind11::module_& m);
void bind_stream(pybind11::module_& m);

}  // namespace saefast
