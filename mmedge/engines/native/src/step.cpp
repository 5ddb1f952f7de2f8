// The forward pass. Every thread of the team has a `Step` of its own and calls its methods in the same order; `split` shares out
// their work. What they have in common lies in the engine.
//
// A sublayer needs few meetings of the threads: what is done row by row (norms, activations' codes, rotation) is done by the thread
// that ends the phase before where there are only a few rows, and shared out where there are many.
#include "step.h"

#include <algorithm>
#include <cstring>

namespace mmedge {

namespace {

constexpr int OUTPUTS = 16;   // of a linear layer, computed by one thread at a time
constexpr int HIDDEN = 64;    // of a gate: whole blocks of activations, which are quantized where they are computed
constexpr int FEW_ROWS = 2;
constexpr int AHEAD = 96;  // lines of 64 bytes

int chunks_of(int count, int each) { return (count + each - 1) / each; }

bool alike(const Weights& a, const Weights& b) {
    return (a.floats && b.floats) || (!a.floats && !b.floats && a.storage == b.storage && a.block == b.block);
}

}  // namespace

class Step {
public:
    Step(Engine& engine, Cache& cache, const Token* tokens, int count, const int* wanted, int wanted_count, float* logits)
        : e_(engine), m_(*engine.model_), k_(engine.kernels_), team_(engine.team_), cache_(cache), tokens_(tokens),
          wanted_(wanted), wanted_count_(wanted_count), logits_(logits), n_(count) {}

    void run(int thread) {
        const ModelBlock& first = m_.blocks.front();
        team_.split(thread, n_, [&](int row) { k_.look_up(*m_.table, tokens_[row].id, x(row)); }, [&] { few(first); });
        for (size_t place = 0; place < m_.blocks.size(); ++place) {
            const ModelBlock& block = m_.blocks[place];
            const ModelBlock* next = place + 1 < m_.blocks.size() ? &m_.blocks[place + 1] : nullptr;
            if (block.kind == Sublayer::self_attention) self_attention(thread, block, next);
            else feed_forward(thread, block, next);
            if (n_ == 0) return;  // nothing is wanted of these tokens: behind the last attention all is done
        }
        head(thread);
    }

private:
    float* x(int row) const { return e_.x_.get() + static_cast<int64_t>(row) * m_.plan.width; }
    float* normed(int row) const { return e_.normed_.get() + static_cast<int64_t>(row) * m_.plan.width; }
    int attended_width() const { return m_.plan.heads * m_.plan.head_width; }
    int projected_width() const { return (m_.plan.heads + 2 * m_.plan.kv_heads) * m_.plan.head_width; }
    float* projected(int row) const { return e_.projected_.get() + static_cast<int64_t>(row) * projected_width(); }
    float* attended(int row) const { return e_.attended_.get() + static_cast<int64_t>(row) * attended_width(); }

    Activations codes(int buffer) const {
        return {e_.codes_[buffer].get(), e_.scales_[buffer].get(), e_.sums_[buffer].get(), e_.code_stride_, m_.most_blocks};
    }

    void quantize(const float* from, int row, const Weights& of, int buffer) {
        if (!of.floats) k_.quantize(from, 0, of.inputs, of, codes(buffer), row);
    }

    // Norms a row for a sublayer and quantizes it.
    void enter(const ModelBlock& block, int row) {
        k_.norm(x(row), block.norm, m_.plan.width, m_.plan.epsilon, normed(row));
        quantize(normed(row), row, *block.first, 0);
        if (block.second && !alike(*block.first, *block.second)) quantize(normed(row), row, *block.second, 1);
    }

    void few(const ModelBlock& block) {
        if (n_ <= FEW_ROWS)
            for (int row = 0; row < n_; ++row) enter(block, row);
    }

    void many(int thread, const ModelBlock& block) {
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { enter(block, row); });
    }

    // What follows a sublayer, done by the thread that ends it.
    void follow(const ModelBlock* next) {
        if (next) few(*next);
        else if (n_ <= FEW_ROWS)
            for (int row = 0; row < n_; ++row) leave(row);
    }

    void leave(int row) {
        k_.norm(x(row), m_.norm, m_.plan.width, m_.plan.epsilon, normed(row));
        quantize(normed(row), row, *m_.head, 0);
    }

    // Asks for the beginning of what a thread will read of the next linear layer, so that it need not wait for it then.
    void ahead(int thread, const Weights* weights, int each) {
        if (!weights || !weights->codes || n_ > FEW_ROWS) return;
        const int64_t first = static_cast<int64_t>(team_.share_begin(thread, chunks_of(weights->outputs, each))) * each;
        const int64_t row = static_cast<int64_t>(weights->blocks) * (weights->storage == Storage::int4_blocks ? weights->block / 2 : weights->block);
        for (int line = 0; line < AHEAD; ++line) __builtin_prefetch(weights->codes + first * row + 64 * line, 0, 2);
        const int64_t scales = first * weights->blocks;
        for (int line = 0; line < AHEAD / 16; ++line)
            __builtin_prefetch(weights->half_scales ? static_cast<const void*>(weights->half_scales + scales + 32 * line)
                                                    : static_cast<const void*>(weights->scales + scales + 16 * line), 0, 2);
    }

    // The same for what follows a sublayer.
    void ahead(int thread, const ModelBlock* next) {
        if (!next) return ahead(thread, m_.head, OUTPUTS);
        ahead(thread, next->first, next->second ? HIDDEN : OUTPUTS);
        ahead(thread, next->second, HIDDEN);
    }

    void multiply(int thread, const Product& product, int first, int end) {
        k_.multiply(product, first, end, e_.scratch_.get() + thread * MULTIPLY_SCRATCH);
    }

    template <typename After>
    void linear(int thread, const Weights& weights, int buffer, const float* from, int64_t stride, float* out, bool add, After after) {
        const Activations quantized = codes(buffer);
        const Product product = {&weights, &quantized, from, stride, n_, out, weights.outputs, add};
        team_.split(
            thread, chunks_of(weights.outputs, OUTPUTS),
            [&](int chunk) { multiply(thread, product, chunk * OUTPUTS, std::min(weights.outputs, (chunk + 1) * OUTPUTS)); }, after);
    }

    // ---------------------------------------------------------------------------------------------- attention

    void self_attention(int thread, const ModelBlock& block, const ModelBlock* next) {
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        linear(thread, *block.first, 0, e_.normed_.get(), m_.plan.width, e_.projected_.get(), false, [&] {
            if (n_ <= FEW_ROWS)
                for (int task = 0; task < n_ * m_.plan.kv_heads; ++task) remember(block, task);
        });
        if (n_ > FEW_ROWS) team_.split(thread, n_ * m_.plan.kv_heads, [&](int task) { remember(block, task); });
        attend(thread, block);
        if (n_ == 0) return;
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { quantize(attended(row), row, *block.out, 0); });
        ahead(thread, next);
        linear(thread, *block.out, 0, e_.attended_.get(), attended_width(), e_.x_.get(), true, [&] { follow(next); });
    }

    // Rotates one head of keys and the queries that see it, and keeps keys and values.
    void remember(const ModelBlock& block, int task) {
        const Plan& plan = m_.plan;
        const int row = task / plan.kv_heads, head = task % plan.kv_heads, width = plan.head_width, group = plan.heads / plan.kv_heads;
        const Token& token = tokens_[row];
        const float* cosines = m_.cosines + static_cast<int64_t>(token.position) * (width / 2);
        const float* sines = m_.sines + static_cast<int64_t>(token.position) * (width / 2);
        for (int query = head * group; query < (head + 1) * group; ++query) {
            float* values = projected(row) + query * width;
            if (block.query_norm) k_.norm(values, block.query_norm, width, plan.epsilon, values);
            k_.rotate(values, cosines, sines, width);
            for (int place = 0; place < width; ++place) values[place] *= plan.attention_scale;
        }
        float* key = projected(row) + (plan.heads + head) * width;
        if (block.key_norm) k_.norm(key, block.key_norm, width, plan.epsilon, key);
        k_.rotate(key, cosines, sines, width);
        float* keys = cache_.keys_of(token.row, block.layer, head) + static_cast<int64_t>(token.position / 8) * 8 * width;
        for (int place = 0; place < width; ++place) keys[8 * place + token.position % 8] = key[place];
        std::memcpy(cache_.values_of(token.row, block.layer, head) + static_cast<int64_t>(token.position) * width,
                    projected(row) + (plan.heads + plan.kv_heads + head) * width, width * sizeof(float));
    }

    void attend(int thread, const ModelBlock& block) {
        const int group = m_.plan.heads / m_.plan.kv_heads;
        const bool last = block.layer == m_.layers - 1;
        const int left = last ? wanted_count_ : n_;
        const bool apart = n_ * m_.plan.kv_heads < 4 * team_.size();  // then every query is a task of its own
        const int each = apart ? 1 : group, tasks = n_ * m_.plan.heads / each;
        team_.split(
            thread, tasks,
            [&](int task) {
                const int row = task / (m_.plan.heads / each), query = task % (m_.plan.heads / each) * each;
                attend_queries(thread, block, row, query, each);
            },
            [&] {
                if (last) keep_wanted();
                if (left <= FEW_ROWS)
                    for (int row = 0; row < left; ++row) quantize(attended(row), row, *block.out, 0);
            });
        n_ = left;
    }

    void attend_queries(int thread, const ModelBlock& block, int row, int query, int count) {
        const int width = m_.plan.head_width, head = query / (m_.plan.heads / m_.plan.kv_heads);
        const Token& token = tokens_[row];
        Attended a;
        a.queries = projected(row) + query * width;
        a.count = count;
        a.keys = cache_.keys_of(token.row, block.layer, head);
        a.values = cache_.values_of(token.row, block.layer, head);
        a.end = token.position + 1;
        a.first = block.window && a.end > block.window ? a.end - block.window : 0;
        a.head_width = width;
        a.scores = e_.scores_.get() + thread * e_.scores_each_;
        a.score_stride = cache_.capacity + 8;
        a.out = attended(row) + query * width;
        k_.attend(a);
    }

    // Behind the last attention only rows go on whose logits are wanted.
    void keep_wanted() {
        for (int place = 0; place < wanted_count_; ++place) {
            const int row = wanted_[place];
            if (row == place) continue;
            std::memcpy(x(place), x(row), m_.plan.width * sizeof(float));
            std::memcpy(attended(place), attended(row), attended_width() * sizeof(float));
        }
    }

    // ---------------------------------------------------------------------------------------------- feed-forward

    void feed_forward(int thread, const ModelBlock& block, const ModelBlock* next) {
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        const Weights &opening = *block.first, &up = *block.second;
        const int hidden = opening.outputs;
        const Activations for_gate = codes(0), for_up = codes(alike(opening, up) ? 0 : 1), of_hidden = codes(2);
        const Product gate_product = {&opening, &for_gate, e_.normed_.get(), m_.plan.width, n_, e_.gate_.get(), hidden, false};
        const Product up_product = {&up, &for_up, e_.normed_.get(), m_.plan.width, n_, e_.up_.get(), hidden, false};
        team_.split(thread, chunks_of(hidden, HIDDEN), [&](int chunk) {
            const int first = chunk * HIDDEN, end = std::min(hidden, first + HIDDEN);
            multiply(thread, gate_product, first, end);
            multiply(thread, up_product, first, end);
            for (int row = 0; row < n_; ++row) {
                float* values = e_.gate_.get() + static_cast<int64_t>(row) * hidden;
                k_.gate(values + first, e_.up_.get() + static_cast<int64_t>(row) * hidden + first, end - first, values + first);
                if (!block.out->floats) k_.quantize(values, first, end, *block.out, of_hidden, row);
            }
        });
        ahead(thread, next);
        linear(thread, *block.out, 2, e_.gate_.get(), hidden, e_.x_.get(), true, [&] { follow(next); });
    }

    void head(int thread) {
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { leave(row); });
        linear(thread, *m_.head, 0, e_.normed_.get(), m_.plan.width, logits_, false, [] {});
    }

    Engine& e_;
    const Model& m_;
    const Kernels& k_;
    Team& team_;
    Cache& cache_;
    const Token* tokens_;
    const int* wanted_;
    const int wanted_count_;
    float* logits_;
    int n_;  // rows that go on
};

Engine::Engine(std::unique_ptr<Model> model, const Kernels& kernels, int threads)
    : model_(std::move(model)), kernels_(kernels), team_(threads) {
    const Plan& plan = model_->plan;
    const int64_t rows = CHUNK_ROWS, attended = static_cast<int64_t>(plan.heads) * plan.head_width;
    x_ = zeros<float>(rows * plan.width);
    normed_ = zeros<float>(rows * plan.width);
    projected_ = zeros<float>(rows * (plan.heads + 2 * plan.kv_heads) * plan.head_width);
    attended_ = zeros<float>(rows * attended);
    gate_ = zeros<float>(rows * model_->hidden);
    up_ = zeros<float>(rows * model_->hidden);
    code_stride_ = (static_cast<int64_t>(model_->widest) + 63) / 64 * 64 * CODE_BYTES + 64;  // rows that do not lie 4096 bytes apart
    for (int buffer = 0; buffer < 3; ++buffer) {
        codes_[buffer] = zeros<uint8_t>(rows * code_stride_);
        scales_[buffer] = zeros<float>(rows * model_->most_blocks);
        sums_[buffer] = zeros<int32_t>(rows * model_->most_blocks);
    }
    scratch_ = zeros<uint8_t>(MULTIPLY_SCRATCH * threads);
}

void Engine::read(Cache& cache, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits) {
    const std::lock_guard<std::mutex> turn(turn_);
    const int64_t each = static_cast<int64_t>(model_->plan.heads / model_->plan.kv_heads) * (cache.capacity + 8);
    if (each > scores_each_) {
        scores_ = zeros<float>(each * team_.size());
        scores_each_ = each;
    }
    size_t place = 0;
    for (size_t first = 0; first < tokens.size(); first += CHUNK_ROWS) {
        const int count = static_cast<int>(std::min<size_t>(CHUNK_ROWS, tokens.size() - first));
        std::vector<int> here;
        const size_t before = place;
        for (; place < wanted.size() && wanted[place] < static_cast<int>(first) + count; ++place)
            here.push_back(wanted[place] - static_cast<int>(first));
        float* out = logits + static_cast<int64_t>(before) * model_->plan.vocabulary;
        team_.run([&](int thread) {
            Step(*this, cache, tokens.data() + first, count, here.data(), static_cast<int>(here.size()), out).run(thread);
        });
    }
}

}  // namespace mmedge
