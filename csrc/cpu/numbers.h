// The numbers of one step. Made of `saefast.reference.Numbers` by `python -m tests.gates.generated --write`: do not edit.
#pragma once

#include <array>
#include <cstddef>

namespace saefast {

struct Numbers {
    float lr;
    float lr_bias;
    float eps;
    float eps_bias;
    float beta1;
    float beta1_rest;
    float beta2;
    float beta2_rest;
    float correction1;
    float correction2;
    float l1;
    float bias_norm;
    float lr_dec;
    float lr_b_dec;
    float unit;
    float tied;
};

constexpr std::size_t N_NUMBERS = 16;

inline Numbers named_numbers(const std::array<double, N_NUMBERS>& numbers) {
    return {
        static_cast<float>(numbers[0]),
        static_cast<float>(numbers[1]),
        static_cast<float>(numbers[2]),
        static_cast<float>(numbers[3]),
        static_cast<float>(numbers[4]),
        static_cast<float>(numbers[5]),
        static_cast<float>(numbers[6]),
        static_cast<float>(numbers[7]),
        static_cast<float>(numbers[8]),
        static_cast<float>(numbers[9]),
        static_cast<float>(numbers[10]),
        static_cast<float>(numbers[11]),
        static_cast<float>(numbers[12]),
        static_cast<float>(numbers[13]),
        static_cast<float>(numbers[14]),
        static_cast<float>(numbers[15]),
    };
}

}  // namespace saefast
