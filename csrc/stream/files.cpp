#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "sha256.h"

namespace saefast::stream {
namespace {

using std::size_t;
using std::uint64_t;
using std::uint8_t;

constexpr uint64_t ALIGNMENT = 4096;    // of O_DIRECT: offsets, sizes and memory
constexpr uint64_t READ = 8ull << 20;   // bytes per call: what `stop` has to wait for

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

struct File {
    int fd = -1;
    ~File() {
        if (fd >= 0) close(fd);
    }
};

std::string reason(int number) { return std::generic_category().message(number); }

// [begin, end) of the file into `out`; returns how many bytes came.
uint64_t read_range(int fd, uint64_t begin, uint64_t end, uint8_t* out, const std::string& path,
                    const std::atomic<bool>& stop) {
    uint64_t done = 0;
    while (begin + done < end && !stop) {
        const ssize_t n = pread(fd, out + done, std::min(READ, end - begin - done),
                                static_cast<off_t>(begin + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw SourceError(path + ": could not be read (" + reason(errno) + ")");
        if (n == 0) break;
        done += static_cast<uint64_t>(n);
    }
    return done;
}

}  // namespace

Files::Files(std::vector<Segment> segments, size_t d_in, DType dtype, bool direct)
    : segments_(std::move(segments)),
      starts_{0},
      d_in_(d_in),
      row_bytes_(d_in * size_of(dtype)),
      ops_(row_ops(dtype)),
      direct_(direct),
      known_(segments_.size()),
      stamps_(segments_.size()) {
    for (const Segment& segment : segments_) starts_.push_back(starts_.back() + segment.rows);
}

Files::Piece Files::piece(uint64_t row, uint64_t bytes) const {
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), row);
    const size_t i = static_cast<size_t>(after - starts_.begin()) - 1;
    const Segment& segment = segments_[i];
    const uint64_t left = starts_[i + 1] - row;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!segment.sha256.empty() && !known_[i]) return {i, row, left, true, segment.file_bytes};
    const uint64_t count = std::min(left, std::max<uint64_t>(1, bytes / row_bytes_));
    return {i, row, count, false, segment.memory ? 0 : count * row_bytes_};
}

std::shared_ptr<Chunk> Files::read(const Piece& piece, SlabPool& pool, const std::atomic<bool>& stop) {
    auto chunk = std::make_shared<Chunk>();
    chunk->first = piece.first, chunk->count = piece.count;
    const Segment& segment = segments_[piece.segment];
    try {
        if (segment.memory) {
            chunk->data = segment.memory + (piece.first - starts_[piece.segment]) * row_bytes_;
        } else {
            read_file(piece, *chunk, pool, stop);
        }
        for (uint64_t i = 0; i < piece.count && !stop; ++i) {
            if (!ops_.finite(chunk->data + i * row_bytes_, d_in_)) chunk->bad.push_back(piece.first + i);
        }
    } catch (const SourceError& error) {
        chunk->error = error.what();
    } catch (const std::bad_alloc&) {
        chunk->error = segment.path + ": no memory for " + std::to_string(piece.bytes) + " bytes of it";
    }
    return chunk;
}

void Files::read_file(const Piece& piece, Chunk& chunk, SlabPool& pool, const std::atomic<bool>& stop) {
    const Segment& segment = segments_[piece.segment];
    const std::string& path = segment.path;
    File file;
    if (direct_) file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    const bool direct = O_DIRECT && file.fd >= 0;
    if (file.fd < 0) file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);  // also where there is no O_DIRECT
    if (file.fd < 0 && errno == ENOENT) throw SourceError(path + ": expected a file, found none");
    if (file.fd < 0) throw SourceError(path + ": could not be opened (" + reason(errno) + ")");
    struct stat info;
    if (fstat(file.fd, &info) != 0) throw SourceError(path + ": could not be read (" + reason(errno) + ")");
    if (static_cast<uint64_t>(info.st_size) != segment.file_bytes) {
        throw SourceError(path + ": expected " + std::to_string(segment.file_bytes) + " bytes, found " +
                          std::to_string(info.st_size));
    }
    const Stamp stamp{static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino),
                      static_cast<uint64_t>(info.st_mtim.tv_sec), static_cast<uint64_t>(info.st_mtim.tv_nsec)};
    const uint64_t in_segment = piece.first - starts_[piece.segment];
    uint64_t begin = segment.offset + in_segment * row_bytes_, end = begin + piece.count * row_bytes_;
    const uint64_t rows_at = begin;
    if (piece.verify) {  // everything that the checksum covers
        for (const Part& part : segment.parts) {
            begin = std::min(begin, part.offset);
            end = std::max(end, part.offset + part.bytes);
        }
    } else {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (known_[piece.segment] && !(stamps_[piece.segment] == stamp)) {
            throw SourceError(path + ": expected it unchanged while it is read, another process wrote to it");
        }
        if (segment.sha256.empty()) known_[piece.segment] = true, stamps_[piece.segment] = stamp;
    }
    const uint64_t start = direct ? begin / ALIGNMENT * ALIGNMENT : begin;
    const uint64_t stop_at = direct ? (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : end;
    chunk.slab = pool.get(stop_at - start);
    const uint64_t came = read_range(file.fd, start, stop_at, chunk.slab->data(), path, stop);
    if (stop) return;
    if (start + came < end) {
        throw SourceError(path + ": expected " + std::to_string(segment.file_bytes) + " bytes, found " +
                          std::to_string(start + came) + ": it was truncated while it was read");
    }
    chunk.data = chunk.slab->data() + (rows_at - start);
    if (!piece.verify) return;
    verify(segment, chunk.slab->data() + (begin - start), begin);
    const std::lock_guard<std::mutex> lock(mutex_);
    known_[piece.segment] = true, stamps_[piece.segment] = stamp;
}

// `data` is what the file holds from `begin` on.
void Files::verify(const Segment& segment, const uint8_t* data, uint64_t begin) {
    Sha256 sha;
    sha.update(segment.meta.data(), segment.meta.size());
    for (const Part& part : segment.parts) {
        sha.update(part.header.data(), part.header.size());
        sha.update(data + (part.offset - begin), part.bytes);
    }
    const std::string found = sha.hex();
    if (found == segment.sha256) return;
    throw SourceError(segment.path + ": corrupt: expected SHA-256 " + segment.sha256.substr(0, 16) +
                      "..., got " + found.substr(0, 16) + "...");
}

}  // namespace saefast::stream
