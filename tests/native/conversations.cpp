// Conversations that another machine has had with the same models: the same tokens and logits, to the bit, alone and together, with
// prompts that are read in pieces, on one thread and on two.
//
//     conversations KERNELS MODEL…    the kernels' name, or nothing for the fastest; files that `tests/native/arm.py` writes
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"

using namespace mmedge;

namespace {

constexpr int ROOM = 200;
constexpr size_t TOGETHER = 5;  // conversations in a batch

using Tokens = std::vector<int64_t>;

struct Spoken {
    Tokens context, prompt, answer;  // the context of an encoder-decoder
    std::vector<float> logits;       // that chose each token of the answer, (answer, vocabulary)
};

// What `arm.py` writes: counts and tokens as int64, structures as they are.
class File {
public:
    explicit File(const char* path) : in_(path, std::ios::binary) {}

    template <typename Value>
    std::vector<Value> values() {
        int64_t count = 0;
        in_.read(reinterpret_cast<char*>(&count), sizeof count);
        std::vector<Value> found(static_cast<size_t>(in_ ? count : 0));
        in_.read(reinterpret_cast<char*>(found.data()), static_cast<std::streamsize>(found.size() * sizeof(Value)));
        if (!in_) throw std::runtime_error("a file ends early");
        return found;
    }

private:
    std::ifstream in_;
};

struct Recorded {
    Plan plan;
    std::vector<Matrix> matrices;
    std::vector<Block> blocks;
    std::vector<uint8_t> weights;
    std::vector<Spoken> conversations;

    explicit Recorded(const char* path) {
        File file(path);
        plan = file.values<Plan>().at(0);
        matrices = file.values<Matrix>();
        blocks = file.values<Block>();
        weights = file.values<uint8_t>();
        conversations.resize(static_cast<size_t>(file.values<int64_t>().at(0)));
        for (Spoken& one : conversations) {
            one.context = file.values<int64_t>();
            one.prompt = file.values<int64_t>();
            one.answer = file.values<int64_t>();
            one.logits = file.values<float>();
        }
    }
};

void require(int failed, const char* message) {
    if (failed) throw std::runtime_error(message);
}

// An opened model, and the conversations that it has together.
class Speaker {
public:
    Speaker(const Recorded& model, const char* kernels, int threads) : model_(model) {
        require(mmedge_open(&model.plan, model.matrices.data(), model.blocks.data(), model.weights.data(), model.weights.size(), threads,
                            1, kernels, &engine_, message_, ROOM),
                message_);
    }
    ~Speaker() { mmedge_close(engine_); }

    // Has conversations from `first` to `end` - 1, reading prompts in pieces of `piece` tokens; returns whether they are the recorded ones.
    bool speak(size_t first, size_t end, int piece) {
        const size_t rows = end - first;
        Cache* cache = nullptr;
        require(mmedge_cache(engine_, static_cast<int64_t>(rows), 80, &cache, message_, ROOM), message_);
        std::vector<Cache*> encoded = encode(first, end);
        Tokens starts(rows, 0);
        bool right = true;
        while (right) {
            Tokens ids, counts, wanted;
            std::vector<size_t> speaking;
            for (size_t row = 0; row < rows; ++row) {
                const Spoken& one = model_.conversations[first + row];
                const int64_t prompt = static_cast<int64_t>(one.prompt.size()), answer = static_cast<int64_t>(one.answer.size());
                const int64_t at = starts[row], left = prompt - at;
                counts.push_back(left > 0 ? std::min<int64_t>(left, piece) : at < prompt + answer - 1);
                for (int64_t place = at; place < at + counts.back(); ++place)
                    ids.push_back(place < prompt ? one.prompt[static_cast<size_t>(place)] : one.answer[static_cast<size_t>(place - prompt)]);
                if (!counts.back() || at + counts.back() < prompt) continue;
                wanted.push_back(static_cast<int64_t>(ids.size()) - 1);
                speaking.push_back(row);
            }
            if (ids.empty()) break;
            std::vector<float> logits(wanted.size() * static_cast<size_t>(model_.plan.vocabulary));
            require(mmedge_read(engine_, cache, ids.data(), counts.data(), starts.data(), encoded.empty() ? nullptr : encoded.data(),
                                wanted.data(), static_cast<int64_t>(wanted.size()), logits.data(), message_, ROOM),
                    message_);
            for (size_t row = 0; row < rows; ++row) starts[row] += counts[row];
            for (size_t place = 0; place < speaking.size(); ++place) {
                const size_t row = speaking[place];
                const float* found = logits.data() + place * static_cast<size_t>(model_.plan.vocabulary);
                right = right && same(model_.conversations[first + row], found, starts[row]);
            }
        }
        for (Cache* one : encoded) mmedge_cache_close(one);
        mmedge_cache_close(cache);
        return right;
    }

private:
    std::vector<Cache*> encode(size_t first, size_t end) {
        if (!model_.plan.encoder_blocks) return {};
        Tokens ids, counts;
        for (size_t place = first; place < end; ++place) {
            const Tokens& context = model_.conversations[place].context;
            ids.insert(ids.end(), context.begin(), context.end());
            counts.push_back(static_cast<int64_t>(context.size()));
        }
        std::vector<Cache*> found(counts.size(), nullptr);
        require(mmedge_encode(engine_, ids.data(), counts.data(), static_cast<int64_t>(counts.size()), found.data(), message_, ROOM), message_);
        return found;
    }

    // Whether logits behind the first `read` tokens are the recorded ones, and choose the recorded token.
    bool same(const Spoken& one, const float* logits, int64_t read) const {
        const size_t place = static_cast<size_t>(read) - one.prompt.size(), count = static_cast<size_t>(model_.plan.vocabulary);
        const int64_t chosen = std::max_element(logits, logits + count) - logits;
        return chosen == one.answer[place] && !std::memcmp(logits, one.logits.data() + place * count, count * sizeof(float));
    }

    const Recorded& model_;
    Engine* engine_ = nullptr;
    char message_[ROOM] = "";
};

bool agree(const char* path, const Recorded& model, const char* kernels) {
    Speaker one(model, kernels, 1), two(model, kernels, 2);
    const size_t count = model.conversations.size();
    int piece = 1;
    for (size_t place = 0; place < count; ++place, piece = piece % 9 + 2)
        if (!one.speak(place, place + 1, place % 2 ? piece : 1000)) return std::printf("%s, %s: conversation %zu differs\n", path, kernels, place), false;
    for (size_t first = 0; first < count; first += TOGETHER, piece = piece % 9 + 2)
        if (!two.speak(first, std::min(count, first + TOGETHER), first % 2 ? piece : 1000))
            return std::printf("%s, %s: conversations from %zu on differ together\n", path, kernels, first), false;
    return true;
}

}  // namespace

int main(int count, char** arguments) try {
    const char* kernels = count > 1 ? mmedge_kernels(arguments[1]) : nullptr;
    if (!kernels) return std::puts("there are no such kernels here"), 1;
    size_t conversations = 0;
    for (int place = 2; place < count; ++place) {
        const Recorded model(arguments[place]);
        if (!agree(arguments[place], model, kernels)) return 1;
        conversations += model.conversations.size();
    }
    std::printf("%s: %zu conversations agree\n", kernels, conversations);
} catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
}
