// Kernels in plain C++: what every processor can run, and what the others are compared with.
#include "kernels.h"
#include "lanes_portable.h"

#include "common.inc"
#include "plain.inc"
#include "convolution.inc"
#include "delta.inc"

namespace mmedge {

const Kernels& portable_kernels() {
    static constexpr Kernels found = {"portable", norm, gate, quantize_plain, multiply_plain, nullptr, rotate, keep, attend, look_up, convolve, unit, rates, move};
    return found;
}

}  // namespace mmedge
