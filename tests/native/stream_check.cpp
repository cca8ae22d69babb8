// Exercises the streaming buffer under a sanitizer: delivery, states, failures, shutdown at any moment.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "../../csrc/stream/buffer.h"
#include "../../csrc/stream/sha256.h"

using namespace saefast::stream;

static void require(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

static Segment write(const std::string& path, float first, int n) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    Sha256 sha;
    for (int i = 0; i < n; ++i) {
        const float row[2] = {first + static_cast<float>(i), 0};
        std::fwrite(row, 1, sizeof row, file);
        sha.update(row, sizeof row);
    }
    std::fclose(file);
    const auto bytes = static_cast<std::uint64_t>(8 * n);
    return {path, bytes, 0, static_cast<std::uint64_t>(n), "", {{"", 0, bytes}}, sha.hex()};
}

int main(int, char** argv) {
    std::vector<Segment> segments;
    for (int i = 0; i < 9; ++i) {
        segments.push_back(write(std::string(argv[1]) + "/" + std::to_string(i), static_cast<float>(100 * i), 100));
    }
    const Settings settings{8, 64, 5, 2, DType::f32, false, false, 3, 2, 2, 2000, 64};
    using Patience = std::chrono::milliseconds;
    const auto take = [](ShuffleBuffer& buffer, std::shared_ptr<Slab>& slab) {
        while (buffer.next(Patience(100), slab) == Status::waiting) {}
    };
    for (int round = 0; round < 200; ++round) {  // closed by the consumer, by another thread, by nobody
        Files files(segments, 2, DType::f32, round % 2);
        ShuffleBuffer buffer(files, settings);
        std::shared_ptr<Slab> slab;
        for (int i = 0; i < round % 7; ++i) take(buffer, slab);
        if (round % 3 == 1) buffer.close();
        if (round % 3 == 2) std::thread([&] { buffer.close(); }).join();
        buffer.state();
    }
    Files files(segments, 2, DType::f32, false);
    ShuffleBuffer buffer(files, settings), other(files, settings);
    std::shared_ptr<Slab> slab, again;
    std::multiset<float> seen;
    for (int i = 0; i < 225; ++i) {  // two passes of 900 rows
        take(buffer, slab);
        for (int j = 0; j < 8; ++j) {
            float value;
            std::memcpy(&value, slab->data() + 8 * j, 4);
            seen.insert(value);
        }
        if (i % 50 == 30) {
            const State state = buffer.state();
            std::vector<float> rows;
            for (const auto row : state.row_of) rows.insert(rows.end(), {static_cast<float>(row), 0});
            other.load(state, reinterpret_cast<const std::uint8_t*>(rows.data()));
            take(buffer, slab), take(other, again), ++i;
            for (int j = 0; j < 8; ++j) {
                float value;
                std::memcpy(&value, slab->data() + 8 * j, 4);
                seen.insert(value);
            }
            require(std::memcmp(slab->data(), again->data(), 64) == 0, "a restored buffer gives the same batch");
        }
    }
    for (int i = 0; i < 900; ++i) require(seen.count(static_cast<float>(i)) == 2, "every row once per pass");
    for (const bool truncated : {true, false}) {
        if (truncated) {
            require(truncate(segments[5].path.c_str(), 96) == 0, "truncate");
        } else {
            unlink(segments[5].path.c_str());
        }
        Files broken(segments, 2, DType::f32, false);
        ShuffleBuffer failing(broken, settings);
        bool failed = false;
        try {
            for (int i = 0; i < 200; ++i) take(failing, slab);
        } catch (const SourceError& error) {
            failed = std::strstr(error.what(), "/5: expected") != nullptr;
        }
        require(failed, "a damaged file is named");
    }
    std::puts("ok");
}
