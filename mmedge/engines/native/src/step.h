// One step: tokens of several rows are read, their keys and values kept, and logits computed where they are wanted.
#pragma once

#include <mutex>

#include "model.h"
#include "team.h"

namespace mmedge {

struct Token {
    int row, position, id;
};

class Engine {
public:
    Engine(std::unique_ptr<Model> model, const Kernels& kernels, int threads);

    const Model& model() const { return *model_; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return team_.size(); }

    // Reads tokens, in which those of a row follow each other, and writes logits, (wanted, vocabulary). Callers on several threads
    // take turns.
    // `wanted` holds places among the tokens, in ascending order.
    void read(Cache& cache, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits);

private:
    friend class Step;

    std::unique_ptr<Model> model_;
    const Kernels& kernels_;
    std::mutex turn_;
    Team team_;
    int64_t code_stride_;
    Memory<float> x_, normed_, projected_, attended_, gate_, up_;
    Memory<uint8_t> codes_[3], scratch_;
    Memory<float> scales_[3];
    Memory<int32_t> sums_[3];
    Memory<float> scores_;  // of every thread
    int64_t scores_each_ = 0;
};

}  // namespace mmedge
