// csrc/update/device.h for the host: every thread of a block is a fiber, and one block runs after the other.
//
// What could go wrong on a GPU goes wrong here: a bulk copy fills its destination with NaN when it is begun, and brings
// its bytes either at once or, which it is by a throw of dice, at the latest moment, when nothing else can go on. Fibers
// take turns in an order of the dice, too, and after a meeting some warps sleep. When nothing can go on at all, the block has met a
// deadlock, and says so.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define SAEFAST_DEVICE inline

namespace saefast::update {

struct alignas(16) Float4 {
    float x[4];
};

enum class Keep { briefly, long_ };

struct Barrier {
    int arrivals, missing;
    std::int64_t bytes;
    std::uint32_t phase;
};

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
    Barrier* barrier;
};

struct Meeting {
    int present = 0;
    std::uint64_t number = 0;
};

class Block {
  public:
    static constexpr int LANES = 32, STACK = 1 << 16;
    static inline Block* current = nullptr;
    static inline std::uint64_t dice = 1;

    Block(int threads, unsigned char* memory, std::size_t bytes, std::function<void(int)> body)
        : fibers_(static_cast<std::size_t>(threads)), memory_(memory), bytes_(bytes), body_(std::move(body)) {
        warps_.resize(static_cast<std::size_t>((threads + LANES - 1) / LANES));
    }

    // -> what went wrong, or nothing.
    std::string run() {
        current = this;
        for (std::size_t i = 0; i < fibers_.size(); ++i) {
            Fiber& fiber = fibers_[i];
            fiber.stack = std::make_unique<char[]>(STACK);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &main_;
            makecontext(&fiber.context, &Block::start, 0);
        }
        std::size_t left = fibers_.size();
        while (left > 0 && error_.empty()) {
            bool ran = false;
            const std::size_t first = throw_dice() % fibers_.size(), n = fibers_.size();
            const bool down = throw_dice() % 2;
            for (std::size_t i = 0; i < n && error_.empty(); ++i) {
                now_ = (first + (down ? n - i : i)) % n;
                Fiber& fiber = fibers_[now_];
                if (fiber.done || (fiber.blocked && fiber.seen == events_)) continue;
                if (asleep_ >> (now_ / LANES) & 1) continue;
                ran = true;
                swapcontext(&main_, &fiber.context);
                if (fiber.done) {
                    --left;
                    ++events_;
                }
            }
            if (ran || !error_.empty()) continue;
            if (asleep_ != 0) {
                asleep_ = 0;
            } else if (!deliver_awaited()) {
                error_ = "deadlock";
            }
        }
        current = nullptr;
        return error_;
    }

    int thread() const { return static_cast<int>(now_); }

    template <typename P>
    void block_until(const P& over) {
        while (!over()) {
            Fiber& fiber = fibers_[now_];
            fiber.blocked = true;
            fiber.seen = events_;
            swapcontext(&fiber.context, &main_);
        }
        fibers_[now_].blocked = false;
    }

    void meet(Meeting& meeting, int threads, bool some_sleep = false) {
        const std::uint64_t number = meeting.number;
        if (++meeting.present == threads) {
            meeting.present = 0;
            ++meeting.number;
            ++events_;
            if (some_sleep && throw_dice() % 2) asleep_ = throw_dice();  // until all others wait for them
        }
        block_until([&] { return meeting.number != number; });
    }
    void meet_all() { meet(all_, static_cast<int>(fibers_.size())); }
    void meet_named(int threads) { meet(named_, threads, true); }
    void meet_warp() { meet(warp().meeting, LANES); }

    template <typename T>
    T from_lane(T value, int lane) {
        Warp& mine = warp();
        std::memcpy(&mine.values[thread() % LANES], &value, sizeof value);
        meet_warp();
        T other;
        std::memcpy(&other, &mine.values[lane], sizeof other);
        meet_warp();
        return other;
    }

    void arrive(Barrier* barrier, int bytes) {
        barrier->bytes += bytes;
        --barrier->missing;
        if (barrier->missing < 0) fail("too many arrivals");
        complete(barrier);
    }

    void wait(Barrier* barrier, std::uint32_t parity) {
        fibers_[now_].awaits = barrier;
        block_until([&] { return (barrier->phase & 1) != parity; });
        fibers_[now_].awaits = nullptr;
    }

    void begin(const Copy& copy) {
        const auto to = static_cast<std::size_t>(copy.to - memory_);
        if (copy.to < memory_ || to + static_cast<std::size_t>(copy.bytes) > bytes_) fail("a copy out of shared memory");
        const auto addresses = reinterpret_cast<std::uintptr_t>(copy.to) | reinterpret_cast<std::uintptr_t>(copy.from);
        if ((addresses | static_cast<std::uintptr_t>(copy.bytes)) % 16 != 0) fail("a copy that is not aligned");
        std::memset(copy.to, 0xFF, static_cast<std::size_t>(copy.bytes));
        if (throw_dice() % 2) {
            deliver(copy);
        } else {
            late_.push_back(copy);
        }
    }

    // Ends the block.
    void fail(const char* what) {
        error_ = what;
        for (;;) swapcontext(&fibers_[now_].context, &main_);
    }

  private:
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        bool done = false, blocked = false;
        std::uint64_t seen = 0;
        Barrier* awaits = nullptr;
    };
    struct Warp {
        Meeting meeting;
        std::uint64_t values[LANES];
    };

    static void start() {
        Block& block = *current;
        block.body_(block.thread());
        block.fibers_[block.now_].done = true;
    }

    static std::uint64_t throw_dice() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        return dice ^= dice << 17;
    }

    Warp& warp() { return warps_[now_ / LANES]; }

    void complete(Barrier* barrier) {
        if (barrier->missing != 0 || barrier->bytes != 0) return;
        ++barrier->phase;
        barrier->missing = barrier->arrivals;
        ++events_;
    }

    void deliver(const Copy& copy) {
        std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
        copy.barrier->bytes -= copy.bytes;
        complete(copy.barrier);
    }

    // One of the copies for which a thread waits; those that nobody waits for stay late.
    bool deliver_awaited() {
        for (const Fiber& fiber : fibers_) {
            for (std::size_t i = 0; fiber.awaits != nullptr && i < late_.size(); ++i) {
                if (late_[i].barrier != fiber.awaits) continue;
                const Copy copy = late_[i];
                late_.erase(late_.begin() + static_cast<std::ptrdiff_t>(i));
                deliver(copy);
                ++events_;
                return true;
            }
        }
        return false;
    }

    std::vector<Fiber> fibers_;
    std::vector<Warp> warps_;
    std::vector<Copy> late_;
    Meeting all_, named_;
    unsigned char* memory_;
    std::size_t bytes_, now_ = 0;
    std::function<void(int)> body_;
    std::uint64_t events_ = 0, asleep_ = 0;  // asleep: warps, which others overtake
    ucontext_t main_;
    std::string error_;
};

inline void init(Barrier* barrier, int arrivals) { *barrier = {arrivals, arrivals, 0, 0}; }
inline void publish_barriers() { Block::current->meet_all(); }
inline void arrive(Barrier* barrier) { Block::current->arrive(barrier, 0); }
inline void arrive_expecting(Barrier* barrier, int bytes) { Block::current->arrive(barrier, bytes); }
inline void wait(Barrier* barrier, std::uint32_t parity) { Block::current->wait(barrier, parity); }
inline void bulk_load(void* to, const void* from, int bytes, Barrier* barrier, Keep) {
    Block::current->begin({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, barrier});
}
inline void meet(int threads) { Block::current->meet_named(threads); }
inline void meet_warp() { Block::current->meet_warp(); }
template <typename T>
T from_lane(T value, int lane) {
    return Block::current->from_lane(value, lane);
}
inline float from_lane_xor(float value, int mask) {
    return from_lane(value, Block::current->thread() % Block::LANES ^ mask);
}
inline float root(float x) { return std::sqrt(x); }
inline float quotient(float x, float y) { return x / y; }

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline std::uint32_t to_bf16(float x, float y) {
    const auto one = [](float z) { return (bits_of(z) + 0x7FFF + (bits_of(z) >> 16 & 1)) >> 16; };
    return one(y) << 16 | one(x);
}
inline void settle(float&) {}
inline void store(float* to, const Float4& x) { *reinterpret_cast<Float4*>(to) = x; }

}  // namespace saefast::update
