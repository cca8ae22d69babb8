// Where the rows come from: ranges of files (or memory), one after another, and reading a piece of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "reading.h"
#include "rows.h"
#include "slab.h"

namespace saefast::stream {

// Something is wrong with the data; the message names the file or the row.
struct SourceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A range of bytes of the file that the checksum covers, after `header`.
struct Part {
    std::string header;
    std::uint64_t offset, bytes;
};

// The rows of one file. `sha256` is empty if there is no checksum; else it covers `meta` and the parts, one of which is
// the rows.
struct Segment {
    std::string path;
    std::uint64_t file_bytes, offset, rows;
    std::string meta;
    std::vector<Part> parts;
    std::string sha256;
    const std::uint8_t* memory = nullptr;  // rows in memory instead, which stay as they are: path is unused
};

// Consecutive rows of a pass, or the error that came instead of them.
struct Chunk {
    std::uint64_t first = 0, count = 0;      // row numbers of the pass
    std::vector<const std::uint8_t*> rows;   // [count] where they are; null when taken
    std::vector<std::uint64_t> bad;          // those with NaN or Inf, ascending
    std::string error;
};

class Files {
  public:
    Files(std::vector<Segment> segments, std::size_t d_in, DType dtype, bool direct);

    std::uint64_t rows() const { return starts_.back(); }
    std::size_t row_bytes() const { return row_bytes_; }
    const RowOps& ops() const { return ops_; }
    const std::uint8_t* in_memory(std::uint64_t row) const;  // null: it is in a file

    // What to read next from `row` on: about `bytes`, or all of a file that is not verified yet.
    struct Piece {
        std::size_t segment;
        std::uint64_t first, count;  // row numbers of the pass
        bool verify;
        bool copied;  // into memory that the caller provides; else the rows stay where they are
    };
    Piece piece(std::uint64_t row, std::uint64_t bytes) const;
    std::uint64_t largest_piece(std::uint64_t bytes) const;  // rows that are copied

    // Reads it, any thread; a row goes through `scratch`, of `scratch_bytes`, to chunk.rows, a place for each one.
    // Errors come as `Chunk::error`; where `stop` becomes true the chunk is of no use.
    std::size_t scratch_bytes(std::uint64_t bytes) const;
    void read(const Piece& piece, Chunk& chunk, Slab& scratch, const std::atomic<bool>& stop);

  private:
    std::size_t segment_of(std::uint64_t row) const;
    void read_memory(const Piece& piece, Chunk& chunk);
    void read_file(const Piece& piece, Chunk& chunk, Slab& scratch, const std::atomic<bool>& stop);
    void verify(const Piece& piece, Chunk& chunk, const Reading& file, Slab& scratch);
    std::size_t at_once(std::uint64_t bytes) const;  // whole rows, at least one
    void store(const std::uint8_t* data, std::uint64_t first, std::uint64_t n, const Piece& piece, Chunk& chunk);

    std::vector<Segment> segments_;
    std::vector<std::uint64_t> starts_;  // first row of each segment, and the end
    std::size_t d_in_, row_bytes_;
    RowOps ops_;
    CopyRow copy_;
    bool direct_;
    mutable std::mutex mutex_;  // for what follows
    std::vector<bool> known_;   // verified, and its stamp taken
    std::vector<Stamp> stamps_;
    std::vector<bool> finite_;  // blocks of rows in memory that were found to be
};

}  // namespace saefast::stream
