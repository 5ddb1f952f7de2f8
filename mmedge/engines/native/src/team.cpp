// How a team's threads come, go and wait.
#include "team.h"

#include <chrono>

namespace mmedge {

namespace {

constexpr auto SPIN = std::chrono::microseconds(200);  // the pause between two steps is shorter; what lasts longer is no pause
constexpr int LOOKS = 64;                              // at the value between two looks at the clock

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int size) : size_(size), shares_(new Share[size]), seats_(new Seat[size]) {
    for (int thread = 1; thread < size; ++thread) threads_.emplace_back([this, thread] { help(thread); });
}

Team::~Team() {
    ends_.store(true, std::memory_order_relaxed);
    begun_.fetch_add(2, std::memory_order_seq_cst);
    begun_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
    if (size_ == 1) return work(0);
    work_.store(&work, std::memory_order_relaxed);
    first_phase_.store(phase_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    seats_[0].phase = phase_.load(std::memory_order_relaxed);
    const uint32_t closed = begun_.load(std::memory_order_relaxed);
    change(begun_, closed + 1);
    work(0);
    begun_.store(closed + 2, std::memory_order_seq_cst);  // who comes now is too late
    for (uint32_t left; (left = inside_.load(std::memory_order_seq_cst)) != 0;) wait_while(inside_, left);
}

void Team::help(int thread) {
    for (uint32_t seen = 0;;) {
        wait_while(begun_, seen);
        seen = begun_.load(std::memory_order_acquire);
        if (ends_.load(std::memory_order_relaxed)) return;
        inside_.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t now = begun_.load(std::memory_order_seq_cst);
        if (now % 2) {  // the run cannot end while this thread is inside
            seen = now;
            seats_[thread].phase = first_phase_.load(std::memory_order_relaxed);
            (*work_.load(std::memory_order_relaxed))(thread);
        }
        inside_.fetch_sub(1, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst)) inside_.notify_all();
    }
}

void Team::wait_while(std::atomic<uint32_t>& value, uint32_t old) {
    const auto until = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int look = 0; look < LOOKS; ++look) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
    } while (std::chrono::steady_clock::now() < until);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    while (value.load(std::memory_order_seq_cst) == old) value.wait(old, std::memory_order_seq_cst);
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace mmedge
