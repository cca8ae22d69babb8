// What the update asks of a multiprocessor: barriers in shared memory, bulk copies into it, shuffles, and quick roots.
// `tests/native/emulated` has the same functions for the host.
#pragma once

#include <cstdint>

#define SAEFAST_DEVICE __device__ __forceinline__

namespace saefast::update {

using Barrier = std::uint64_t;  // an mbarrier

struct alignas(16) Float4 {
    float x[4];
};

enum class Keep { briefly, long_ };  // in the L2 cache

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init(Barrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// For barriers that the first thread made: copies and the other threads see them.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// The phase ends when `bytes` more have come.
__device__ __forceinline__ void arrive_expecting(Barrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void wait(Barrier* barrier, std::uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ std::uint64_t policy(Keep keep) {
    std::uint64_t made;
    if (keep == Keep::long_) {
        asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(made));
    } else {
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(made));
    }
    return made;
}

// `bytes`, a multiple of 16, from global to shared memory, both at multiples of 16; `barrier` is told when they are there.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Barrier* barrier, Keep keep) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy(keep))
        : "memory");
}

// The threads that compute, the first `threads` of a block, meet.
__device__ __forceinline__ void meet(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

__device__ __forceinline__ void meet_warp() { __syncwarp(); }

__device__ __forceinline__ float from_lane_xor(float value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFF, value, mask);
}

template <typename T>
__device__ __forceinline__ T from_lane(T value, int lane) {
    return __shfl_sync(0xFFFFFFFF, value, lane);
}

__device__ __forceinline__ float root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float quotient(float x, float y) {
    float z;
    asm("div.full.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

// bf16, rounded to nearest even: y in the upper half.
__device__ __forceinline__ std::uint32_t to_bf16(float x, float y) {
    std::uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
    return both;
}

__device__ __forceinline__ std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(std::uint32_t x) { return __uint_as_float(x); }

// Made now: the compiler would repeat a choice wherever its result is used, to keep fewer registers.
__device__ __forceinline__ void settle(float& x) { asm volatile("" : "+f"(x)); }

// What nobody reads again in this step.
__device__ __forceinline__ void store(float* to, const Float4& x) {
    __stcs(reinterpret_cast<float4*>(to), make_float4(x.x[0], x.x[1], x.x[2], x.x[3]));
}

}  // namespace saefast::update
