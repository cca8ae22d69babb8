// A loop over threads. Which thread takes which item is left to chance, so an item's result must depend on nothing but
// its number: then the bits are the same for every number of threads.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace saefast {

using OpenMP = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// torch's own OpenMP runtime, found in the process (nothing here is linked with one); null where there is none. Its
// threads spin for milliseconds after every op of torch, and ours would wait for a core until they are done.
inline OpenMP openmp() {
    static const auto found = [] {
        void* symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        // torch's wheels for Arm keep it from the global scope: as torch's own library finds it, then
        void* const torch = symbol ? nullptr : dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
        if (torch) symbol = dlsym(torch, "GOMP_parallel");
        return reinterpret_cast<OpenMP>(symbol);
    }();
    static const pid_t pid = getpid();
    return getpid() == pid ? found : nullptr;  // a forked process has none of its threads
}

// How many pieces of `size` hold n.
constexpr std::size_t chunks_of(std::size_t n, std::size_t size) { return (n + size - 1) / size; }

// Calls `work(item, thread)` once for each item in [0, items), with thread in [0, threads). `work` must not throw:
// whatever it needs is allocated before.
template <typename Work>
void parallel_for(std::size_t items, int threads, const Work& work) {
    const std::size_t used = std::min<std::size_t>(static_cast<std::size_t>(threads), items);
    std::atomic<std::size_t> next{0}, joined{0};
    const auto run = [&] {
        const std::size_t thread = joined.fetch_add(1, std::memory_order_relaxed);
        for (std::size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            work(item, thread);
        }
    };
    if (used <= 1) return run();
    if (const OpenMP parallel = openmp()) {
        const auto body = [](void* data) { (*static_cast<decltype(&run)>(data))(); };
        return parallel(body, const_cast<void*>(static_cast<const void*>(&run)), static_cast<unsigned>(used), 0);
    }
    std::vector<std::thread> helpers;
    helpers.reserve(used);
    for (std::size_t i = 1; i < used; ++i) {
        try {
            helpers.emplace_back(run);
        } catch (const std::system_error&) {  // no thread to be had: the others do its share
            break;
        }
    }
    run();
    for (auto& helper : helpers) helper.join();
}

}  // namespace saefast
