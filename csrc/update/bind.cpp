// The module _update_cuda beside the Triton kernels. Memory comes as addresses, in the order of `Update`; `update_cuda.py` checks tensors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "update.h"

namespace saefast::update {
namespace {

namespace py = pybind11;

constexpr std::size_t POINTERS = 33, SIZES = 7;
static_assert(std::is_trivially_copyable_v<Update> && sizeof(Update) == (POINTERS + SIZES) * 8, "only these fields");

void update(const std::array<std::uintptr_t, POINTERS>& pointers, const std::array<std::int64_t, SIZES>& sizes,
            std::uintptr_t stream) {
    for (const std::uintptr_t pointer : pointers) {
        if (pointer % 4 != 0) throw py::value_error("pointers: expected addresses that 4 divides");
    }
    Update made;
    std::memcpy(static_cast<void*>(&made), pointers.data(), sizeof pointers);
    std::memcpy(reinterpret_cast<char*>(&made) + sizeof pointers, sizes.data(), sizeof sizes);
    if (made.F < 1 || made.D < 8 || made.D % 8 != 0 || made.B < 0 || made.N < 0) {
        throw py::value_error("F, D, B, N: expected positive sizes, and a D that 8 divides");
    }
    if (made.window < 1 || made.blocks < 1 || made.stages < 4) {
        throw py::value_error("window, blocks, stages: expected at least 1, 1 and 4");
    }
    const char* failed = nullptr;
    {
        const py::gil_scoped_release release;
        failed = launch(made, reinterpret_cast<void*>(stream));
    }
    if (failed != nullptr) throw std::runtime_error(std::string("CUDA: update: ") + failed);
}

}  // namespace

PYBIND11_MODULE(_update_cuda, m) {
    m.doc() = "The update with bulk copies (saefast.triton_kernels.update_cuda wraps it).";
    m.def("update", &update, py::arg("pointers"), py::arg("sizes"), py::arg("stream"),
          "Queues the kernels: the fields of csrc/update/update.h, pointers first.");
}

}  // namespace saefast::update
