// One step: tokens of several rows are read, their keys and values kept, and logits computed where they are wanted. Before the first
// step of an encoder-decoder, the rows' contexts are encoded.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "model.h"
#include "team.h"

namespace mmedge {

struct Token {
    int row, position, id;
};

// What is added to scores, spread out by distance so that it lies side by side for the positions that a query sees.
class Bias {
public:
    // Makes room for queries and keys of less than `reach` positions; `both`: for keys ahead of a query too.
    void reach(const float* table, int heads, int farthest, int reach, bool both);

    // A head's bias by the key's position, for a query at this position.
    const float* of(int head, int position) const { return values_.data() + head * each_ + reach_ - position; }

private:
    std::vector<float> values_;
    int64_t each_ = 0;
    int reach_ = 0;
};

// What one caller's steps need at a time: threads, and room for the states of rows.
class Workspace {
public:
    Workspace(const Model& model, const Kernels& kernels, int threads);

    void read(Cache& cache, const Cache* const* encoded, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits);
    void encode(const std::vector<int>& tokens, const std::vector<std::unique_ptr<Cache>>& contexts);

private:
    friend class Step;

    void make_room(int rows);
    void make_scores(int64_t positions);

    const Model& model_;
    const Kernels& kernels_;
    Team team_;
    int64_t code_stride_;
    int rows_ = 0;  // that the buffers have room for
    Memory<float> x_, normed_, projected_, mixed_, gate_, up_, rates_;
    Memory<uint8_t> codes_[3], scratch_;
    Memory<float> scales_[3];
    Memory<int32_t> sums_[3];
    Memory<float> scores_;  // of every thread
    int64_t scores_each_ = 0, score_stride_ = 0;
    Bias bias_, encoder_bias_;
    std::vector<Cache*> contexts_;  // that are being encoded
};

// A model, and a workspace for each of so many callers at once; further ones wait.
class Engine {
public:
    Engine(std::unique_ptr<Model> model, const Kernels& kernels, int threads, int callers);

    const Model& model() const { return *model_; }

    // Reads tokens, in which those of a row follow each other, and writes logits, (wanted, vocabulary). `wanted` holds places among the
    // tokens, in ascending order; `encoded` each row's context where there is an encoder.
    void read(Cache& cache, const Cache* const* encoded, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits) {
        in_workspace([&](Workspace& some) { some.read(cache, encoded, tokens, wanted, logits); });
    }

    // Encodes contexts of as many tokens as their caches say; their tokens lie one behind the other.
    void encode(const std::vector<int>& tokens, const std::vector<std::unique_ptr<Cache>>& contexts) {
        in_workspace([&](Workspace& some) { some.encode(tokens, contexts); });
    }

private:
    template <typename Work>
    void in_workspace(Work work) {
        std::unique_lock<std::mutex> lock(mutex_);
        freed_.wait(lock, [&] { return !free_.empty(); });
        Workspace* const found = free_.back();
        free_.pop_back();
        lock.unlock();
        const Returned back{*this, found};
        work(*found);
    }

    struct Returned {
        Engine& engine;
        Workspace* workspace;
        ~Returned() {
            {
                const std::lock_guard<std::mutex> lock(engine.mutex_);
                engine.free_.push_back(workspace);
            }
            engine.freed_.notify_one();
        }
    };

    std::unique_ptr<Model> model_;
    std::vector<std::unique_ptr<Workspace>> workspaces_;
    std::mutex mutex_;
    std::condition_variable freed_;
    std::vector<Workspace*> free_;
};

}  // namespace mmedge
