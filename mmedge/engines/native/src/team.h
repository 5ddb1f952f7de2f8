// Threads that work on one step together. Whoever is there takes part; nobody waits for a thread that the system has put aside,
// unless it is in the middle of something.
//
//     team.run([&](int thread) {
//         team.split(thread, chunks, [&](int chunk) { … });   // each chunk once; ends when all are done
//     });
//
// The calls of `split` are phases, the same for every thread. A phase ends when its chunks are done, whoever did them, not when all
// threads have arrived: one that comes late finds the phase over and goes on to the next. A thread takes the chunks of its own share
// first, which lie behind each other in memory, then what others have not begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace mmedge {

class Team {
public:
    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Runs work(thread) on the caller's thread and on those that come in time, and returns when none is at work any more.
    void run(const std::function<void(int)>& work);

    // The first chunk of a thread's share.
    int share_begin(int owner, int chunks) const { return static_cast<int>(static_cast<int64_t>(chunks) * owner / size_); }

    // Runs work(chunk) for all chunks, at least one, and `after` once, when the last is done.
    template <typename Work, typename After>
    void split(int thread, int chunks, Work&& work, After&& after) {
        if (size_ == 1) {
            for (int chunk = 0; chunk < chunks; ++chunk) work(chunk);
            after();
            return;
        }
        const uint32_t phase = seats_[thread].phase++;
        for (int offset = 0; offset < size_; ++offset) {
            const int owner = (thread + offset) % size_, first = share_begin(owner, chunks), end = share_begin(owner + 1, chunks);
            for (int taken; (taken = take(owner, phase, end - first)) >= 0;) {
                work(first + taken);
                if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks) {
                    after();
                    begin_phase(phase + 1);
                }
            }
        }
        if (phase_.load(std::memory_order_acquire) == phase) wait_while(phase_, phase);
    }

    template <typename Work>
    void split(int thread, int chunks, Work&& work) {
        split(thread, chunks, work, [] {});
    }

private:
    struct alignas(64) Share {
        std::atomic<uint64_t> taken{0};  // the phase in the high bits, and how many chunks of it have been taken
    };
    struct alignas(64) Seat {
        uint32_t phase = 0;  // that its thread is in
    };

    // Takes the next chunk of a share; -1 where there is none left, or the phase is over.
    int take(int owner, uint32_t phase, int most) {
        std::atomic<uint64_t>& taken = shares_[owner].taken;
        uint64_t seen = taken.load(std::memory_order_acquire);
        while (static_cast<uint32_t>(seen >> 32) == phase && static_cast<int>(static_cast<uint32_t>(seen)) < most)
            if (taken.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                return static_cast<int>(static_cast<uint32_t>(seen));
        return -1;
    }

    void begin_phase(uint32_t phase) {
        done_.store(0, std::memory_order_relaxed);
        for (int owner = 0; owner < size_; ++owner) shares_[owner].taken.store(static_cast<uint64_t>(phase) << 32, std::memory_order_release);
        change(phase_, phase);
    }

    void change(std::atomic<uint32_t>& value, uint32_t to) {
        value.store(to, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst)) value.notify_all();
    }

    void wait_while(std::atomic<uint32_t>& value, uint32_t old);
    void help(int thread);

    const int size_;
    std::unique_ptr<Share[]> shares_;
    std::unique_ptr<Seat[]> seats_;
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<uint32_t> begun_{0};   // runs; odd while one may be joined
    alignas(64) std::atomic<uint32_t> inside_{0};  // helpers that are at work
    alignas(64) std::atomic<int> asleep_{0};
    std::atomic<bool> ends_{false};
    std::atomic<uint32_t> first_phase_{0};  // of the run
    std::atomic<const std::function<void(int)>*> work_{nullptr};
    std::vector<std::thread> threads_;
};

}  // namespace mmedge
