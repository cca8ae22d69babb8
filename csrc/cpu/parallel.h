// A loop over threads of its own. Which thread takes which item is left to chance, so an item's result must depend on
// nothing but its number: then the bits are the same for every number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace saefast {

// Calls `work(item, thread)` once for each item in [0, items), with thread in [0, threads). `work` must not throw:
// whatever it needs is allocated before.
template <typename Work>
void parallel_for(std::size_t items, int threads, const Work& work) {
    const std::size_t used = std::min<std::size_t>(static_cast<std::size_t>(threads), items);
    std::atomic<std::size_t> next{0};
    const auto run = [&](std::size_t thread) {
        for (std::size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            work(item, thread);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(used);
    for (std::size_t thread = 1; thread < used; ++thread) {
        try {
            helpers.emplace_back(run, thread);
        } catch (const std::system_error&) {  // no thread to be had: the others do its share
            break;
        }
    }
    run(0);
    for (auto& helper : helpers) helper.join();
}

}  // namespace saefast
