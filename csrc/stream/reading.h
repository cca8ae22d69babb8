// An open file that is read into a small piece of memory, which stays in the processor's cache; also read ahead of use.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "slab.h"

namespace saefast::stream {

struct Range {
    std::uint64_t begin, end;
};

// As long as this is the same, the file is the one that was verified.
struct Stamp {
    std::uint64_t device, inode, seconds, nanoseconds;
    bool operator==(const Stamp& other) const {
        return device == other.device && inode == other.inode && seconds == other.seconds &&
               nanoseconds == other.nanoseconds;
    }
};

class Reading {
  public:
    // `direct`: read around the page cache, if the file system can do that. Throws SourceError.
    Reading(const std::string& path, std::uint64_t file_bytes, bool direct, const std::atomic<bool>& stop);
    ~Reading();
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

    Stamp stamp() const { return stamp_; }

    // Read a range into `memory`, which has the size of the range + `EXTRA`. Returns where the range begins there, or null
    // after `stop`. Throws SourceError.
    static constexpr std::uint64_t EXTRA = 2 * 4096;  // for the alignment that O_DIRECT wants
    const std::uint8_t* read(Range range, std::uint8_t* memory) const;

  private:
    const std::string& path_;
    const std::uint64_t file_bytes_;
    const std::atomic<bool>& stop_;
    int fd_ = -1;
    bool direct_ = false;
    Stamp stamp_{};
};

// Reads ranges in order into the two halves of `memory`; a thread reads the next range while this one is used.
class ReadAhead {
  public:
    ReadAhead(const Reading& file, std::vector<Range> ranges, Slab& memory);
    ~ReadAhead();

    // The next range, valid until the next call; null after `stop`. Throws what reading it threw.
    const std::uint8_t* next();

  private:
    void work();
    const std::uint8_t* read(std::size_t i) const;

    const Reading& file_;
    const std::vector<Range> ranges_;
    Slab& memory_;
    std::mutex mutex_;  // for what follows
    std::condition_variable changed_;
    std::size_t read_ = 0, taken_ = 0;
    const std::uint8_t* data_[2] = {};
    std::exception_ptr error_;
    bool ended_ = false;
    std::thread thread_;
};

}  // namespace saefast::stream
