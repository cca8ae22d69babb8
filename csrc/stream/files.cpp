#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "sha256.h"

namespace saefast::stream {
namespace {

using std::size_t;
using std::uint64_t;
using std::uint8_t;

constexpr uint64_t ALIGNMENT = 4096;  // of O_DIRECT: offsets, sizes and memory
constexpr uint64_t BLOCK = 1024;      // rows in memory that are checked together

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

std::string reason(int number) { return std::generic_category().message(number); }

}  // namespace

// An open file that is read in order, a piece at a time, into memory that stays in the cache.
struct Files::Reading {
    const Segment& segment;
    Slab& scratch;
    const std::atomic<bool>& stop;
    int fd = -1;
    bool direct = false;
    Stamp stamp{};

    Reading(const Segment& s, bool want_direct, Slab& memory, const std::atomic<bool>& stopped)
        : segment(s), scratch(memory), stop(stopped) {
        const char* path = s.path.c_str();
        if (want_direct) fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
        direct = O_DIRECT && fd >= 0;
        if (fd < 0) fd = open(path, O_RDONLY | O_CLOEXEC);  // also where there is no O_DIRECT
        if (fd < 0 && errno == ENOENT) throw SourceError(s.path + ": expected a file, found none");
        if (fd < 0) throw SourceError(s.path + ": could not be opened (" + reason(errno) + ")");
        struct stat info;
        const int failed = fstat(fd, &info) != 0 ? errno : 0;
        if (!failed && static_cast<uint64_t>(info.st_size) == s.file_bytes) {
            stamp = {static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino),
                     static_cast<uint64_t>(info.st_mtim.tv_sec), static_cast<uint64_t>(info.st_mtim.tv_nsec)};
            return;
        }
        close(fd);
        if (failed) throw SourceError(s.path + ": could not be read (" + reason(failed) + ")");
        throw SourceError(s.path + ": expected " + std::to_string(s.file_bytes) + " bytes, found " +
                          std::to_string(info.st_size));
    }
    ~Reading() { close(fd); }
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

    // What a call can read whatever its alignment.
    uint64_t step() const { return scratch.bytes() - 2 * ALIGNMENT; }

    // [begin, end), at most `step` bytes; null after `stop`.
    const uint8_t* read(uint64_t begin, uint64_t end) {
        const uint64_t start = direct ? begin / ALIGNMENT * ALIGNMENT : begin;
        const uint64_t limit = direct ? (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : end;
        uint64_t at = start;
        while (at < end) {
            if (stop) return nullptr;
            const ssize_t n = pread(fd, scratch.data() + (at - start), limit - at, static_cast<off_t>(at));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw SourceError(segment.path + ": could not be read (" + reason(errno) + ")");
            if (n == 0) {
                throw SourceError(segment.path + ": expected " + std::to_string(segment.file_bytes) +
                                  " bytes, found " + std::to_string(at) + ": it was truncated while it was read");
            }
            at += static_cast<uint64_t>(n);
        }
        return scratch.data() + (begin - start);
    }
};

Files::Files(std::vector<Segment> segments, size_t d_in, DType dtype, bool direct)
    : segments_(std::move(segments)),
      starts_{0},
      d_in_(d_in),
      row_bytes_(d_in * size_of(dtype)),
      ops_(row_ops(dtype)),
      copy_(copy_row(row_bytes_)),
      direct_(direct),
      known_(segments_.size()),
      stamps_(segments_.size()) {
    for (const Segment& segment : segments_) starts_.push_back(starts_.back() + segment.rows);
    finite_.resize(rows() / BLOCK);
}

size_t Files::segment_of(uint64_t row) const {
    return static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), row) - starts_.begin()) - 1;
}

const uint8_t* Files::in_memory(uint64_t row) const {
    const size_t i = segment_of(row);
    return segments_[i].memory ? segments_[i].memory + (row - starts_[i]) * row_bytes_ : nullptr;
}

Files::Piece Files::piece(uint64_t row, uint64_t bytes) const {
    const size_t i = segment_of(row);
    const Segment& segment = segments_[i];
    const uint64_t left = starts_[i + 1] - row;
    if (segment.memory) return {i, row, std::min(left, BLOCK - row % BLOCK), false, false};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!segment.sha256.empty() && !known_[i]) return {i, row, left, true, true};
    return {i, row, std::min(left, std::max<uint64_t>(1, bytes / row_bytes_)), false, true};
}

uint64_t Files::largest_piece(uint64_t bytes) const {
    uint64_t rows = 0;
    for (const Segment& segment : segments_) {
        const uint64_t most = segment.sha256.empty() ? std::max<uint64_t>(1, bytes / row_bytes_) : segment.rows;
        if (!segment.memory) rows = std::max(rows, std::min(segment.rows, most));
    }
    return rows;
}

size_t Files::scratch_bytes(uint64_t bytes) const {
    return std::max<uint64_t>(row_bytes_, bytes / row_bytes_ * row_bytes_) + 2 * ALIGNMENT;
}

void Files::read(const Piece& piece, Chunk& chunk, Slab& scratch, const std::atomic<bool>& stop) {
    chunk.first = piece.first, chunk.count = piece.count;
    try {
        if (piece.copied) {
            read_file(piece, chunk, scratch, stop);
        } else {
            read_memory(piece, chunk);
        }
    } catch (const SourceError& error) {
        chunk.error = error.what();
    } catch (const std::bad_alloc&) {
        chunk.error = segments_[piece.segment].path + ": no memory to list its rows";
    }
}

void Files::read_memory(const Piece& piece, Chunk& chunk) {
    const uint8_t* data = in_memory(piece.first);
    const uint64_t block = piece.first / BLOCK;
    const bool whole = piece.count == BLOCK;
    bool finite = false;
    if (whole) {
        const std::lock_guard<std::mutex> lock(mutex_);
        finite = finite_[block];
    }
    for (uint64_t i = 0; i < piece.count; ++i, data += row_bytes_) {
        chunk.rows.push_back(data);
        if (!finite && !ops_.finite(data, d_in_)) chunk.bad.push_back(piece.first + i);
    }
    if (!whole || finite || !chunk.bad.empty()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    finite_[block] = true;
}

// Rows `first` to `first` + n, as far as they are in the piece, to their places.
void Files::store(const uint8_t* data, uint64_t first, uint64_t n, const Piece& piece, Chunk& chunk) {
    for (uint64_t i = first < piece.first ? std::min(n, piece.first - first) : 0; i < n; ++i) {
        const uint8_t* row = data + i * row_bytes_;
        if (!ops_.finite(row, d_in_)) chunk.bad.push_back(first + i);
        // the reader has the place to itself until the chunk is handed over
        copy_(row, row_bytes_, const_cast<uint8_t*>(chunk.rows[first + i - piece.first]));
    }
    copies_done();
}

// A file that has a checksum is hashed as it is read, all of it. Its rows go to their places before the checksum is
// known, and reach nobody if it is wrong.
void Files::read_file(const Piece& piece, Chunk& chunk, Slab& scratch, const std::atomic<bool>& stop) {
    const Segment& segment = segments_[piece.segment];
    const uint64_t before = starts_[piece.segment];  // rows
    Reading file(segment, direct_, scratch, stop);
    const uint64_t rows_at_once = file.step() / row_bytes_;
    const auto read_rows = [&](uint64_t first, uint64_t last, Sha256* sha) {
        for (uint64_t row = first; row < last; row += rows_at_once) {
            const uint64_t n = std::min(rows_at_once, last - row);
            const uint64_t begin = segment.offset + (row - before) * row_bytes_;
            const uint8_t* data = file.read(begin, begin + n * row_bytes_);
            if (!data) return;
            if (sha) sha->update(data, n * row_bytes_);
            store(data, row, n, piece, chunk);
        }
    };
    if (!piece.verify) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (known_[piece.segment] && !(stamps_[piece.segment] == file.stamp)) {
                throw SourceError(segment.path +
                                  ": expected it unchanged while it is read, another process wrote to it");
            }
            if (segment.sha256.empty()) known_[piece.segment] = true, stamps_[piece.segment] = file.stamp;
        }
        read_rows(piece.first, piece.first + piece.count, nullptr);
        return;
    }
    Sha256 sha;
    sha.update(segment.meta.data(), segment.meta.size());
    for (const Part& part : segment.parts) {
        sha.update(part.header.data(), part.header.size());
        if (part.offset == segment.offset && part.bytes == segment.rows * row_bytes_) {
            read_rows(before, before + segment.rows, &sha);
            continue;
        }
        for (uint64_t done = 0; done < part.bytes && !stop;) {
            const uint64_t n = std::min(file.step(), part.bytes - done);
            const uint8_t* data = file.read(part.offset + done, part.offset + done + n);
            if (data) sha.update(data, n);
            done += n;
        }
    }
    if (stop) return;
    const std::string found = sha.hex();
    if (found != segment.sha256) {
        throw SourceError(segment.path + ": corrupt: expected SHA-256 " + segment.sha256.substr(0, 16) +
                          "..., got " + found.substr(0, 16) + "...");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    known_[piece.segment] = true, stamps_[piece.segment] = file.stamp;
}

}  // namespace saefast::stream
