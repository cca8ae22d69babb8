#include "reading.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "files.h"

namespace saefast::stream {
namespace {

using std::uint64_t;
using std::uint8_t;
using Lock = std::unique_lock<std::mutex>;

constexpr uint64_t ALIGNMENT = 4096;  // of O_DIRECT: offsets, sizes and memory

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

std::string reason(int number) { return std::generic_category().message(number); }

}  // namespace

Reading::Reading(const std::string& path, uint64_t file_bytes, bool direct, const std::atomic<bool>& stop)
    : path_(path), file_bytes_(file_bytes), stop_(stop) {
    if (direct) fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    direct_ = O_DIRECT && fd_ >= 0;
    if (fd_ < 0) fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);  // also where there is no O_DIRECT
    if (fd_ < 0 && errno == ENOENT) throw SourceError(path + ": expected a file, found none");
    if (fd_ < 0) throw SourceError(path + ": could not be opened (" + reason(errno) + ")");
    struct stat info;
    const int failed = fstat(fd_, &info) != 0 ? errno : 0;
    if (failed || static_cast<uint64_t>(info.st_size) != file_bytes) {
        close(fd_);
        if (failed) throw SourceError(path + ": could not be read (" + reason(failed) + ")");
        throw SourceError(path + ": expected " + std::to_string(file_bytes) + " bytes, found " +
                          std::to_string(info.st_size));
    }
    stamp_ = {static_cast<uint64_t>(info.st_dev), static_cast<uint64_t>(info.st_ino),
              static_cast<uint64_t>(info.st_mtim.tv_sec), static_cast<uint64_t>(info.st_mtim.tv_nsec)};
}

Reading::~Reading() { close(fd_); }

const uint8_t* Reading::read(Range range, uint8_t* memory) const {
    const uint64_t start = direct_ ? range.begin / ALIGNMENT * ALIGNMENT : range.begin;
    const uint64_t limit = direct_ ? (range.end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : range.end;
    uint64_t at = start;
    while (at < range.end) {
        if (stop_) return nullptr;
        const ssize_t n = pread(fd_, memory + (at - start), limit - at, static_cast<off_t>(at));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw SourceError(path_ + ": could not be read (" + reason(errno) + ")");
        if (n == 0) {
            throw SourceError(path_ + ": expected " + std::to_string(file_bytes_) + " bytes, found " +
                              std::to_string(at) + ": it was truncated while it was read");
        }
        at += static_cast<uint64_t>(n);
    }
    return memory + (range.begin - start);
}

ReadAhead::ReadAhead(const Reading& file, std::vector<Range> ranges, Slab& memory)
    : file_(file), ranges_(std::move(ranges)), memory_(memory) {
    try {
        thread_ = std::thread([this] { work(); });
    } catch (const std::system_error&) {  // no thread can be started: `next` reads by itself
    }
}

ReadAhead::~ReadAhead() {
    {
        const Lock lock(mutex_);
        ended_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

const uint8_t* ReadAhead::read(std::size_t i) const {
    return file_.read(ranges_[i], memory_.data() + i % 2 * (memory_.bytes() / 2 / ALIGNMENT * ALIGNMENT));
}

void ReadAhead::work() {
    for (std::size_t i = 0; i < ranges_.size(); ++i) {
        const uint8_t* data = nullptr;
        std::exception_ptr error;
        try {
            data = read(i);
        } catch (const SourceError&) {
            error = std::current_exception();
        }
        Lock lock(mutex_);
        data_[i % 2] = data, error_ = error, read_ = i + 1;
        changed_.notify_all();
        // the half that is read into next is free when the range after it is asked for
        changed_.wait(lock, [&] { return ended_ || taken_ > i; });
        if (ended_ || error || !data) return;
    }
}

const uint8_t* ReadAhead::next() {
    if (!thread_.joinable()) return read(taken_++);
    Lock lock(mutex_);
    changed_.wait(lock, [&] { return read_ > taken_; });
    const uint8_t* data = data_[taken_ % 2];
    ++taken_;
    changed_.notify_all();
    if (error_) std::rethrow_exception(error_);
    return data;
}

}  // namespace saefast::stream
