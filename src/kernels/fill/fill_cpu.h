// The CPU twin of fill.h, for the dispatcher only.
#pragma once

#include "core/tensor.h"

namespace longnet::cpu {

void fill(const TensorView& values, float value);

}  // namespace longnet::cpu
