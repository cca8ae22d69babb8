#include "files.h"

#include <algorithm>
#include <new>

#include "reading.h"
#include "sha256.h"

namespace saefast::stream {
namespace {

using std::size_t;
using std::uint64_t;
using std::uint8_t;

constexpr uint64_t BLOCK = 1024;  // rows in memory that are checked together

}  // namespace

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

size_t Files::at_once(uint64_t bytes) const { return std::max<uint64_t>(row_bytes_, bytes / row_bytes_ * row_bytes_); }

size_t Files::scratch_bytes(uint64_t bytes) const { return 2 * (at_once(bytes) + Reading::EXTRA); }

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

// Copies rows `first` to `first` + n, as far as they belong to the piece, to their places.
void Files::store(const uint8_t* data, uint64_t first, uint64_t n, const Piece& piece, Chunk& chunk) {
    for (uint64_t i = first < piece.first ? std::min(n, piece.first - first) : 0; i < n; ++i) {
        const uint8_t* row = data + i * row_bytes_;
        if (!ops_.finite(row, d_in_)) chunk.bad.push_back(first + i);
        // the reader has the place to itself until the chunk is handed over
        copy_(row, row_bytes_, const_cast<uint8_t*>(chunk.rows[first + i - piece.first]));
    }
    copies_done();
}

void Files::read_file(const Piece& piece, Chunk& chunk, Slab& scratch, const std::atomic<bool>& stop) {
    const Segment& segment = segments_[piece.segment];
    const Reading file(segment.path, segment.file_bytes, direct_, stop);
    if (piece.verify) {
        verify(piece, chunk, file, scratch);
        if (stop) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        known_[piece.segment] = true, stamps_[piece.segment] = file.stamp();
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (known_[piece.segment] && !(stamps_[piece.segment] == file.stamp())) {
            throw SourceError(segment.path + ": expected it unchanged while it is read, another process wrote to it");
        }
        if (segment.sha256.empty()) known_[piece.segment] = true, stamps_[piece.segment] = file.stamp();
    }
    const uint64_t begin = segment.offset + (piece.first - starts_[piece.segment]) * row_bytes_;
    const uint8_t* data = file.read({begin, begin + piece.count * row_bytes_}, scratch.data());
    if (data) store(data, piece.first, piece.count, piece, chunk);
}

// The whole file is hashed while it is read. Its rows are copied to their places before the checksum is known, and are not
// delivered if it is wrong.
void Files::verify(const Piece& piece, Chunk& chunk, const Reading& file, Slab& scratch) {
    const Segment& segment = segments_[piece.segment];
    const uint64_t step = at_once(scratch.bytes() / 2 - 2 * Reading::EXTRA);
    std::vector<Range> ranges;
    for (const Part& part : segment.parts) {
        for (uint64_t done = 0; done < part.bytes; done += step) {
            ranges.push_back({part.offset + done, part.offset + std::min(done + step, part.bytes)});
        }
    }
    ReadAhead ahead(file, ranges, scratch);
    Sha256 sha;
    sha.update(segment.meta.data(), segment.meta.size());
    size_t next = 0;
    for (const Part& part : segment.parts) {
        const bool rows = part.offset == segment.offset && part.bytes == segment.rows * row_bytes_;
        sha.update(part.header.data(), part.header.size());
        for (uint64_t done = 0; done < part.bytes; done += step, ++next) {
            const uint8_t* data = ahead.next();
            if (!data) return;
            const uint64_t bytes = ranges[next].end - ranges[next].begin;
            sha.update(data, bytes);
            if (rows) store(data, starts_[piece.segment] + done / row_bytes_, bytes / row_bytes_, piece, chunk);
        }
    }
    const std::string found = sha.hex();
    if (found == segment.sha256) return;
    throw SourceError(segment.path + ": corrupt: expected SHA-256 " + segment.sha256.substr(0, 16) +
                      "..., got " + found.substr(0, 16) + "...");
}

}  // namespace saefast::stream
