// attention_cudnn.h in a build without cuDNN: reports that, and never runs anything.
#include "kernels/attention/attention_cudnn.h"

namespace longnet::cudnn {

std::string unavailable() { return "this program was built without cuDNN"; }
std::string refusal(Context&, const sdpa::Shape&) { return unavailable(); }
void run(Context&, const sdpa::Shape&, const Operands&) {
  throw Error("attention through cuDNN: {}", unavailable());
}

}  // namespace longnet::cudnn
