// The forward pass. Every thread of the team has a `Step` of its own and calls its methods in the same order; `split` shares out
// their work. What they have in common lies in the engine.
//
// A sublayer needs few meetings of the threads: what is done row by row (norms, activations' codes, rotation) is done by the thread
// that ends the phase before where there are only a few rows, and shared out where there are many.
#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mmedge {

namespace {

constexpr int OUTPUTS = 16;   // of a linear layer, computed by one thread at a time
constexpr int HIDDEN = 64;    // of a gate: whole blocks of activations, which are quantized where they are computed
constexpr int FEW_ROWS = 2;
constexpr int AHEAD = 96;  // lines of 64 bytes

int chunks_of(int count, int each) { return (count + each - 1) / each; }

bool alike(const Weights& a, const Weights& b) {
    return (a.floats && b.floats) || (!a.floats && !b.floats && a.storage == b.storage && a.block == b.block && !a.panels == !b.panels);
}

}  // namespace

// What a step reads, and where it goes.
struct Pass {
    const std::vector<ModelBlock>& blocks;
    Cache& cache;
    const Cache* const* encoded;  // by row of the cache; null where there is no encoder
    const Token* tokens;
    int count;
    const int* wanted;
    int wanted_count;
    const float* norm;      // the last
    const Weights& head;    // what gives logits, or the keys and values of cross-attentions
    float* out;             // (wanted, outputs of the head)
    const Bias* bias;       // null where positions are told apart by rotation
    const int* lengths;     // in an encoder, where a token sees those ahead of it: how many each row has; null in a decoder
    const int* begins;      // the first token of each row that is read, and how many tokens there are; null in an encoder
    int rows;
};

class Step {
public:
    Step(Workspace& workspace, const Pass& pass)
        : e_(workspace), m_(workspace.model_), k_(workspace.kernels_), team_(workspace.team_), pass_(pass), n_(pass.count) {}

    void run(int thread) {
        const std::vector<ModelBlock>& blocks = pass_.blocks;
        team_.split(thread, n_, [&](int row) { look_up(row); }, [&] { few(blocks.front()); });
        for (size_t place = 0; place < blocks.size(); ++place) {
            const ModelBlock& block = blocks[place];
            const ModelBlock* next = place + 1 < blocks.size() ? &blocks[place + 1] : nullptr;
            if (block.kind == Sublayer::self_attention) self_attention(thread, block, next);
            else if (block.kind == Sublayer::cross_attention) cross_attention(thread, block, next);
            else if (block.kind == Sublayer::convolution) convolution(thread, block, next);
            else if (block.kind == Sublayer::gated_delta) gated_delta(thread, block, next);
            else feed_forward(thread, block, next);
            if (n_ == 0) return;  // nothing is wanted of these tokens, and the last sublayer that keeps something of them is done
        }
        head(thread);
    }

private:
    float* x(int row) const { return e_.x_.get() + static_cast<int64_t>(row) * m_.plan.width; }
    float* normed(int row) const { return e_.normed_.get() + static_cast<int64_t>(row) * m_.plan.width; }
    // What a sublayer's first linear layer gives of a row, and what its last one is given.
    float* projected(const ModelBlock& block, int row) const { return e_.projected_.get() + static_cast<int64_t>(row) * block.first->outputs; }
    float* mixed(const ModelBlock& block, int row) const { return e_.mixed_.get() + static_cast<int64_t>(row) * block.out->inputs; }

    Activations codes(int buffer) const {
        return {e_.codes_[buffer].get(), e_.scales_[buffer].get(), e_.sums_[buffer].get(), e_.code_stride_, m_.most_blocks};
    }

    void look_up(int row) {
        k_.look_up(*m_.table, pass_.tokens[row].id, x(row));
        if (m_.plan.embedding_multiplier != 1.0f)
            for (int place = 0; place < m_.plan.width; ++place) x(row)[place] *= m_.plan.embedding_multiplier;
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
        k_.norm(x(row), pass_.norm, m_.plan.width, m_.plan.epsilon, normed(row));
        quantize(normed(row), row, pass_.head, 0);
    }

    // The token of a row that goes on.
    const Token& token_of(int row) const { return pass_.tokens[shortened_ ? pass_.wanted[row] : row]; }

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
        if (!next) return ahead(thread, &pass_.head, OUTPUTS);
        const bool attends = next->kind == Sublayer::self_attention || next->kind == Sublayer::cross_attention;
        ahead(thread, next->first, attends ? OUTPUTS : HIDDEN);
        ahead(thread, next->second, HIDDEN);
    }

    void multiply(int thread, const Product& product, int first, int end) {
        uint8_t* scratch = e_.scratch_.get() + thread * MULTIPLY_SCRATCH;
        if (product.rows <= CHUNK_ROWS) return k_.multiply(product, first, end, scratch);
        for (int row = 0; row < product.rows; row += CHUNK_ROWS) {
            const Activations& all = *product.quantized;
            const Activations some = {all.codes + row * all.code_stride, all.scales + row * all.block_stride,
                                      all.sums + row * all.block_stride, all.code_stride, all.block_stride};
            Product part = product;
            part.quantized = &some;
            part.floats += row * product.float_stride;
            part.out += row * product.out_stride;
            part.rows = std::min(CHUNK_ROWS, product.rows - row);
            k_.multiply(part, first, end, scratch);
        }
    }

    template <typename After>
    void linear(int thread, const Weights& weights, int buffer, const float* from, int64_t stride, float* out, bool add, After after) {
        const Activations quantized = codes(buffer);
        const Product product = {&weights, &quantized, from, stride, n_, out, weights.outputs, add};
        team_.split(
            thread, chunks_of(weights.outputs, OUTPUTS),
            [&](int chunk) { multiply(thread, product, chunk * OUTPUTS, std::min(weights.outputs, (chunk + 1) * OUTPUTS)); }, after);
    }

    // A sublayer's last linear layer, whose result is added to the states, normed before where the plan says so.
    void finish(int thread, const ModelBlock& block, const ModelBlock* next, int buffer, const float* from, int64_t stride) {
        if (!block.after_norm) return linear(thread, *block.out, buffer, from, stride, e_.x_.get(), true, [&] { follow(next); });
        linear(thread, *block.out, buffer, from, stride, e_.normed_.get(), false, [&] {
            if (n_ > FEW_ROWS) return;
            for (int row = 0; row < n_; ++row) add_normed(block, row);
            follow(next);
        });
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { add_normed(block, row); });
    }

    void add_normed(const ModelBlock& block, int row) {
        k_.norm(normed(row), block.after_norm, m_.plan.width, m_.plan.epsilon, normed(row));
        for (int place = 0; place < m_.plan.width; ++place) x(row)[place] += normed(row)[place];
    }

    // A phase in which tokens see others, and the linear layer behind it. Behind the last such phase only rows go on whose logits are
    // wanted.
    template <typename Work>
    void mix(int thread, const ModelBlock& block, const ModelBlock* next, int tasks, Work work) {
        const int left = block.last ? pass_.wanted_count : n_;
        team_.split(thread, tasks, work, [&] {
            if (block.last) keep_wanted(block);
            if (left <= FEW_ROWS)
                for (int row = 0; row < left; ++row) quantize(mixed(block, row), row, *block.out, 0);
        });
        n_ = left;
        shortened_ = shortened_ || block.last;
        if (n_ == 0) return;
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { quantize(mixed(block, row), row, *block.out, 0); });
        ahead(thread, next);
        finish(thread, block, next, 0, e_.mixed_.get(), block.out->inputs);
    }

    void keep_wanted(const ModelBlock& block) {
        for (int place = 0; place < pass_.wanted_count; ++place) {
            const int row = pass_.wanted[place];
            if (row == place) continue;
            std::memcpy(x(place), x(row), m_.plan.width * sizeof(float));
            std::memcpy(mixed(block, place), mixed(block, row), static_cast<size_t>(block.out->inputs) * sizeof(float));
        }
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
        const int group = m_.plan.heads / m_.plan.kv_heads;
        const bool apart = n_ * m_.plan.kv_heads < 4 * team_.size();  // then every query is a task of its own
        const int each = apart ? 1 : group, of_row = m_.plan.heads / each;
        mix(thread, block, next, n_ * of_row, [&](int task) { attend(thread, block, task / of_row, task % of_row * each, each); });
    }

    // Rotates one head of keys and the queries that see it, and keeps keys and values.
    void remember(const ModelBlock& block, int task) {
        const Plan& plan = m_.plan;
        const int row = task / plan.kv_heads, head = task % plan.kv_heads, width = plan.head_width, group = plan.heads / plan.kv_heads;
        const Token& token = pass_.tokens[row];
        const int64_t angles = static_cast<int64_t>(token.position) * (block.rotary_width / 2);
        auto turn = [&](float* values) {
            if (block.rotary_width) k_.rotate(values, block.cosines + angles, block.sines + angles, block.rotary_width);
        };
        for (int query = head * group; query < (head + 1) * group; ++query) {
            float* values = projected(block, row) + query * width;
            if (block.query_norm) k_.norm(values, block.query_norm, width, plan.epsilon, values);
            turn(values);
            for (int place = 0; place < width; ++place) values[place] *= plan.attention_scale;
        }
        float* key = projected(block, row) + (plan.heads + head) * width;
        if (block.key_norm) k_.norm(key, block.key_norm, width, plan.epsilon, key);
        turn(key);
        const float* value = projected(block, row) + (plan.heads + plan.kv_heads + head) * width;
        k_.keep(key, value, pass_.cache.head(token.row, block.layer, head), token.position);
    }

    void attend(int thread, const ModelBlock& block, int row, int query, int count) {
        const int width = m_.plan.head_width, head = query / (m_.plan.heads / m_.plan.kv_heads);
        const Token& token = pass_.tokens[row];
        Attended a;
        a.queries = projected(block, row) + query * width;
        a.count = count;
        a.kept = pass_.cache.head(token.row, block.layer, head);
        a.bias = pass_.bias ? pass_.bias->of(query, token.position) : nullptr;
        a.end = pass_.lengths ? pass_.lengths[token.row] : token.position + 1;
        a.first = block.window && a.end > block.window ? a.end - block.window : 0;
        a.scores = e_.scores_.get() + thread * e_.scores_each_;
        a.score_stride = e_.score_stride_;
        a.out = mixed(block, row) + query * width;
        k_.attend(a);
        if (!block.gated) return;
        const float* gates = projected(block, row) + (m_.plan.heads + 2 * m_.plan.kv_heads + query) * width;
        k_.gate(gates, a.out, count * width, Activation::sigmoid, a.out);
    }

    // Attends to what a row's context was encoded to.
    void cross_attention(int thread, const ModelBlock& block, const ModelBlock* next) {
        const int heads = m_.plan.heads, width = m_.plan.head_width;
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        linear(thread, *block.first, 0, e_.normed_.get(), m_.plan.width, e_.projected_.get(), false, [] {});
        mix(thread, block, next, n_ * heads, [&](int task) {
            const int row = task / heads, head = task % heads;
            const Cache& context = *pass_.encoded[token_of(row).row];
            Attended a;
            a.queries = e_.projected_.get() + static_cast<int64_t>(task) * width;
            a.count = 1;
            a.kept = context.head(0, block.layer, head);
            a.bias = nullptr;
            a.first = 0;
            a.end = context.length;
            a.scores = e_.scores_.get() + thread * e_.scores_each_;
            a.score_stride = e_.score_stride_;
            a.out = mixed(block, row) + head * width;
            k_.attend(a);
        });
    }

    // ---------------------------------------------------------------------------------------------- convolutions

    // A gated convolution: of three parts side by side, the first times the last is convolved, and that times the second goes on.
    void convolution(int thread, const ModelBlock& block, const ModelBlock* next) {
        const int width = block.channels;
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        const Activations quantized = codes(0);
        const Product opened = {block.first, &quantized, e_.normed_.get(), m_.plan.width, n_, e_.projected_.get(), block.first->outputs, false};
        mix(thread, block, next, chunks_of(width, HIDDEN), [&](int chunk) {
            const int first = chunk * HIDDEN, end = std::min(width, first + HIDDEN);
            for (int part = 0; part < 3; ++part) multiply(thread, opened, part * width + first, part * width + end);
            for (int row = 0; row < pass_.count; ++row)
                for (int place = first; place < end; ++place) projected(block, row)[place] *= projected(block, row)[2 * width + place];
            convolve(block, first, end, e_.mixed_.get(), width);
            for (int row = 0; row < pass_.count; ++row)
                for (int place = first; place < end; ++place) mixed(block, row)[place] *= projected(block, row)[width + place];
        });
    }

    // Convolves channels of what the first linear layer gives, row after row, and keeps the row's last inputs.
    void convolve(const ModelBlock& block, int first, int end, float* out, int64_t stride) {
        const int kept = block.taps - 1;
        for (int which = 0; which < pass_.rows; ++which) {
            const int begin = pass_.begins[which], behind = pass_.begins[which + 1];
            float* state = pass_.cache.states_of(pass_.tokens[begin].row) + block.state;
            auto input = [&](int place) {  // what is kept of the row, and then what is new
                return place < kept ? state + place * block.channels : projected(block, begin + place - kept);
            };
            for (int row = begin; row < behind; ++row) {
                Convolved some = {{}, block.kernel, block.kernel_bias, block.taps, first, end, out + row * stride};
                for (int tap = 0; tap < block.taps; ++tap) some.seen[tap] = input(row - begin + tap);
                k_.convolve(some);
            }
            for (int place = 0; place < kept; ++place)
                std::memcpy(state + place * block.channels + first, input(behind - begin + place) + first, static_cast<size_t>(end - first) * sizeof(float));
        }
    }

    // ---------------------------------------------------------------------------------------------- gated delta layers

    float* rates(int row) const { return e_.rates_.get() + static_cast<int64_t>(row) * m_.rates; }

    // Queries, keys and values are convolved and activated; heads then read token after token, each into its own matrix.
    void gated_delta(int thread, const ModelBlock& block, const ModelBlock* next) {
        const int channels = block.channels, inner = block.out->inputs, heads = block.value_heads;
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        const Activations for_first = codes(0), for_second = codes(alike(*block.first, *block.second) ? 0 : 1);
        const Product opened = {block.first, &for_first, e_.normed_.get(), m_.plan.width, n_, e_.projected_.get(), block.first->outputs, false};
        const Product rated = {block.second, &for_second, e_.normed_.get(), m_.plan.width, n_, e_.rates_.get(), m_.rates, false};
        const int convolved = chunks_of(channels, HIDDEN), gates = chunks_of(inner, HIDDEN);
        team_.split(thread, convolved + gates + 1, [&](int chunk) {
            if (chunk < convolved) open(thread, block, opened, chunk * HIDDEN, std::min(channels, (chunk + 1) * HIDDEN));
            else if (chunk == convolved + gates) rate(thread, block, rated);
            else {
                const int first = channels + (chunk - convolved) * HIDDEN;
                multiply(thread, opened, first, std::min(channels + inner, first + HIDDEN));
            }
        });
        mix(thread, block, next, pass_.rows * heads, [&](int task) { read(thread, block, task / heads, task % heads); });
    }

    // Computes channels of queries, keys and values.
    void open(int thread, const ModelBlock& block, const Product& product, int first, int end) {
        multiply(thread, product, first, end);
        convolve(block, first, end, e_.gate_.get(), block.channels);
        for (int row = 0; row < pass_.count; ++row) {
            float* values = e_.gate_.get() + static_cast<int64_t>(row) * block.channels + first;
            k_.gate(values, nullptr, end - first, Activation::silu, values);
        }
    }

    // Computes how far each head's state is moved at each token, and what is left of it before.
    void rate(int thread, const ModelBlock& block, const Product& product) {
        const int heads = block.value_heads;
        multiply(thread, product, 0, 2 * heads);
        for (int row = 0; row < pass_.count; ++row)
            k_.rates(rates(row), rates(row) + heads, block.step_bias, block.slope, heads, rates(row), rates(row) + heads);
    }

    // Lets a head read the tokens of a row.
    void read(int thread, const ModelBlock& block, int which, int head) {
        const int keys = block.key_heads * block.key_width, group = block.value_heads / block.key_heads;
        float* query = reinterpret_cast<float*>(e_.scratch_.get() + thread * MULTIPLY_SCRATCH);
        float* key = query + block.key_width;
        float* state = pass_.cache.states_of(pass_.tokens[pass_.begins[which]].row) + block.matrices;
        state += static_cast<int64_t>(head) * block.key_width * block.value_width;
        for (int row = pass_.begins[which]; row < pass_.begins[which + 1]; ++row) {
            const float* from = e_.gate_.get() + static_cast<int64_t>(row) * block.channels;
            float* out = mixed(block, row) + head * block.value_width;
            k_.unit(from + head / group * block.key_width, block.key_width, 1.0f / std::sqrt(static_cast<float>(block.key_width)), query);
            k_.unit(from + keys + head / group * block.key_width, block.key_width, 1.0f, key);
            k_.move({query, key, from + 2 * keys + head * block.value_width, rates(row)[block.value_heads + head], rates(row)[head], state,
                     block.key_width, block.value_width, out});
            k_.norm(out, block.head_norm, block.value_width, m_.plan.epsilon, out);
            k_.gate(projected(block, row) + block.channels + head * block.value_width, out, block.value_width, Activation::silu, out);
        }
    }

    // ---------------------------------------------------------------------------------------------- feed-forward

    void feed_forward(int thread, const ModelBlock& block, const ModelBlock* next) {
        many(thread, block);
        ahead(thread, block.out, OUTPUTS);
        const Weights &opening = *block.first, *up = block.second;
        const int hidden = opening.outputs;
        const Activations for_gate = codes(0), for_up = codes(up && !alike(opening, *up) ? 1 : 0), of_hidden = codes(2);
        const Product gate_product = {&opening, &for_gate, e_.normed_.get(), m_.plan.width, n_, e_.gate_.get(), hidden, false};
        const Product up_product = {up, &for_up, e_.normed_.get(), m_.plan.width, n_, e_.up_.get(), hidden, false};
        team_.split(thread, chunks_of(hidden, HIDDEN), [&](int chunk) {
            const int first = chunk * HIDDEN, end = std::min(hidden, first + HIDDEN);
            multiply(thread, gate_product, first, end);
            if (up) multiply(thread, up_product, first, end);
            for (int row = 0; row < n_; ++row) {
                float* values = e_.gate_.get() + static_cast<int64_t>(row) * hidden;
                const float* factors = up ? e_.up_.get() + static_cast<int64_t>(row) * hidden + first : nullptr;
                k_.gate(values + first, factors, end - first, block.activation, values + first);
                if (!block.out->floats) k_.quantize(values, first, end, *block.out, of_hidden, row);
            }
        });
        ahead(thread, next);
        finish(thread, block, next, 2, e_.gate_.get(), hidden);
    }

    void head(int thread) {
        if (n_ > FEW_ROWS) team_.split(thread, n_, [&](int row) { leave(row); });
        linear(thread, pass_.head, 0, e_.normed_.get(), m_.plan.width, pass_.out, false, [] {});
        if (pass_.lengths) team_.split(thread, n_, [&](int row) { keep_encoded(row); });
    }

    // Puts the keys and values of a context's token where cross-attentions find them.
    void keep_encoded(int row) {
        const int heads = m_.plan.heads, width = m_.plan.head_width, position = pass_.tokens[row].position;
        const float* key = pass_.out + static_cast<int64_t>(row) * pass_.head.outputs;
        const Cache& context = *e_.contexts_[pass_.tokens[row].row];
        for (int layer = 0; layer < m_.layers; ++layer, key += heads * width)
            for (int head = 0; head < heads; ++head, key += width) k_.keep(key, key + heads * width, context.head(0, layer, head), position);
    }

    Workspace& e_;
    const Model& m_;
    const Kernels& k_;
    Team& team_;
    const Pass& pass_;
    int n_;                   // rows that go on
    bool shortened_ = false;  // whether these are the wanted ones alone
};

void Bias::reach(const float* table, int heads, int farthest, int reach, bool both) {
    if (reach <= reach_) return;
    const int64_t count = (both ? 2 : 1) * static_cast<int64_t>(reach) + 16;
    std::vector<float> values(static_cast<size_t>(count * heads), 0.0f);
    const int of_head = both ? 2 * farthest + 1 : farthest + 1;
    for (int head = 0; head < heads; ++head)
        for (int64_t place = 0; place < count; ++place) {
            const int64_t distance = place - reach;  // of the key from the query
            if (distance > 0 && !both) break;
            const int64_t clipped = std::max<int64_t>(-farthest, std::min<int64_t>(distance, farthest));
            values[static_cast<size_t>(head * count + place)] = table[head * of_head + (both ? clipped + farthest : -clipped)];
        }
    values_.swap(values);
    each_ = count;
    reach_ = reach;
}

Engine::Engine(std::unique_ptr<Model> model, const Kernels& kernels, int threads, int callers) : model_(std::move(model)) {
    for (int caller = 0; caller < callers; ++caller) {
        workspaces_.push_back(std::make_unique<Workspace>(*model_, kernels, threads));
        free_.push_back(workspaces_.back().get());
    }
}

Workspace::Workspace(const Model& model, const Kernels& kernels, int threads) : model_(model), kernels_(kernels), team_(threads) {
    code_stride_ = (static_cast<int64_t>(model_.widest) + 63) / 64 * 64 * CODE_BYTES + 64;  // rows that do not lie 4096 bytes apart
    scratch_ = zeros<uint8_t>(MULTIPLY_SCRATCH * threads);
    make_room(CHUNK_ROWS);
}

void Workspace::make_room(int rows) {
    if (rows <= rows_) return;
    const Plan& plan = model_.plan;
    x_ = zeros<float>(static_cast<int64_t>(rows) * plan.width);
    normed_ = zeros<float>(static_cast<int64_t>(rows) * plan.width);
    projected_ = zeros<float>(static_cast<int64_t>(rows) * model_.opened);
    mixed_ = zeros<float>(static_cast<int64_t>(rows) * model_.mixed);
    gate_ = zeros<float>(static_cast<int64_t>(rows) * model_.hidden);
    rates_ = zeros<float>(static_cast<int64_t>(rows) * model_.rates);
    up_ = zeros<float>(static_cast<int64_t>(rows) * model_.hidden);
    for (int buffer = 0; buffer < 3; ++buffer) {
        codes_[buffer] = zeros<uint8_t>(rows * code_stride_);
        scales_[buffer] = zeros<float>(static_cast<int64_t>(rows) * model_.most_blocks);
        sums_[buffer] = zeros<int32_t>(static_cast<int64_t>(rows) * model_.most_blocks);
    }
    rows_ = rows;
}

void Workspace::make_scores(int64_t positions) {
    const int64_t each = static_cast<int64_t>(model_.plan.heads / model_.plan.kv_heads) * (positions + 8);
    if (each <= scores_each_) return;
    scores_ = zeros<float>(each * team_.size());
    scores_each_ = each;
    score_stride_ = positions + 8;
}

void Workspace::read(Cache& cache, const Cache* const* encoded, const std::vector<Token>& tokens, const std::vector<int>& wanted, float* logits) {
    const Plan& plan = model_.plan;
    make_scores(cache.capacity);
    if (encoded) {
        for (const Token& token : tokens) make_scores(encoded[token.row]->capacity);
        bias_.reach(model_.bias, plan.heads, plan.farthest, cache.capacity, false);
    }
    size_t place = 0;
    for (size_t first = 0; first < tokens.size(); first += CHUNK_ROWS) {
        const int count = static_cast<int>(std::min<size_t>(CHUNK_ROWS, tokens.size() - first));
        std::vector<int> here;
        const size_t before = place;
        for (; place < wanted.size() && wanted[place] < static_cast<int>(first) + count; ++place)
            here.push_back(wanted[place] - static_cast<int>(first));
        float* out = logits + static_cast<int64_t>(before) * plan.vocabulary;
        std::vector<int> begins;
        for (int row = 0; row < count; ++row)
            if (!row || tokens[first + row].row != tokens[first + row - 1].row) begins.push_back(row);
        const int rows = static_cast<int>(begins.size());
        begins.push_back(count);
        const Pass pass = {model_.blocks, cache, encoded, tokens.data() + first, count, here.data(), static_cast<int>(here.size()),
                           model_.norm, *model_.head, out, encoded ? &bias_ : nullptr, nullptr, begins.data(), rows};
        team_.run([&](int thread) { Step(*this, pass).run(thread); });
    }
}

void Workspace::encode(const std::vector<int>& tokens, const std::vector<std::unique_ptr<Cache>>& contexts) {
    const Plan& plan = model_.plan;
    size_t place = 0;
    for (size_t first = 0, end = 0; first < contexts.size(); first = end) {
        std::vector<Token> some;
        std::vector<int> lengths;
        contexts_.clear();
        int longest = 0;
        do {  // contexts that are read together, or a long one
            const int length = contexts[end]->length;
            for (int position = 0; position < length; ++position, ++place)
                some.push_back({static_cast<int>(end - first), position, tokens[place]});
            lengths.push_back(length);
            contexts_.push_back(contexts[end].get());
            longest = std::max(longest, length);
        } while (++end < contexts.size() && some.size() + static_cast<size_t>(contexts[end]->length) <= CHUNK_ROWS);
        const int count = static_cast<int>(some.size());
        const std::unique_ptr<Cache> own = make_cache(model_, CacheType::float32, static_cast<int64_t>(end - first), longest, 1);
        const Memory<float> out = zeros<float>(static_cast<int64_t>(count) * model_.cross->outputs);
        if (!own || !out) throw std::bad_alloc();
        make_room(count);
        make_scores(own->capacity);
        encoder_bias_.reach(model_.encoder_bias, plan.heads, plan.farthest, own->capacity, true);
        const Pass pass = {model_.encoder, *own, nullptr, some.data(), count, nullptr, 0, model_.encoder_norm, *model_.cross,
                           out.get(), &encoder_bias_, lengths.data(), nullptr, 0};
        team_.run([&](int thread) { Step(*this, pass).run(thread); });
    }
}

}  // namespace mmedge
