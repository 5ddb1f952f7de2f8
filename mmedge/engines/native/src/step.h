// One step: tokens of several rows are read, their keys and values kept, and logits computed where they are wanted. Before the first
// step of an encoder-decoder, the rows' contexts are encoded.
#pragma once

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

class Engine {
public:
    Engine(std::unique_ptr<Model> model, const Kernels& kernels, int threads);

    const Model& model() const { return *model_; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return team_.size(); }

    // Reads tokens, in which those of a row follow each other, and writes logits, (wanted, vocabulary). Callers on several threads
    // take turns.
    // `wanted` holds places among the tokens, in ascending order; `encoded` each row's context where there is an encoder.
    void read(Cache& cache, const Cache* const* encoded, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits);

    // Encodes contexts of as many tokens as their caches say; their tokens lie one behind the other.
    void encode(const std::vector<int>& tokens, const std::vector<std::unique_ptr<Cache>>& contexts);

private:
    friend class Step;

    void make_room(int rows);
    void make_scores(int64_t positions);

    std::unique_ptr<Model> model_;
    const Kernels& kernels_;
    std::mutex turn_;
    Team team_;
    int64_t code_stride_;
    int rows_ = 0;  // that the buffers have room for
    Memory<float> x_, normed_, projected_, attended_, gate_, up_;
    Memory<uint8_t> codes_[3], scratch_;
    Memory<float> scales_[3];
    Memory<int32_t> sums_[3];
    Memory<float> scores_;  // of every thread
    int64_t scores_each_ = 0, score_stride_ = 0;
    Bias bias_, encoder_bias_;
    std::vector<Cache*> contexts_;  // that are being encoded
};

}  // namespace mmedge
