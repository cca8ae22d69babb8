// saefast._C. Every argument is checked in the bind*.cpp of its folder, once; the code behind trusts it.

#include "bindings.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "The C++ part of saefast.";
    saefast::bind_cpu(m);
    saefast::bind_stream(m);
}
