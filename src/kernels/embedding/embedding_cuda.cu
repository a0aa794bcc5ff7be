// CUDA twin of embedding.h. Forward: a warp owns 32 packs of one row, one pack a lane.
//
// Backward: tokens are sorted stably (radix 256, places with them), so that equal ones are
// neighbours; a warp adds up 32 sorted rows in 32 packs of columns. A run of equal tokens inside
// such a piece goes to the table at once, runs that cross pieces leave partial sums, which the warp
// of the piece where the run begins adds in order. Each place of the table has one writer; orders
// depend on the tokens alone: same bits every time. Reads each row of grad_out once; partial sums
// are at most 1 / 16 of that; sorting moves 8 bytes a token and digit. Shared memory 9 KiB
// (sorting).
#include "core/context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/warp.h"
#include "kernels/embedding/embedding_cuda.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDigits = 256;  // of the radix sort; one thread owns one
constexpr int kChunk = 1024;  // tokens a block sorts
constexpr int kPiece = 32;    // sorted rows a warp adds up: one a lane to look at
constexpr int kAhead = 8;     // of them loaded before any is added

/// unit of this warp among rows x strips of 32 packs; the lane's column.
template <int kPack>
__device__ __forceinline__ bool own_pack(int64_t* row, int64_t* column, int64_t rows,
                                         int64_t width) {
  const int64_t strips = (width + 32 * kPack - 1) / (32 * kPack);
  const int64_t unit = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  *row = unit / strips;
  *column = ((unit - *row * strips) * 32 + threadIdx.x % 32) * kPack;
  return *row < rows;
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Elements out, Elements table, const int64_t* tokens, int64_t rows, int64_t width,
                   int64_t vocabulary) {
  int64_t row, column;
  if (!own_pack<kPack>(&row, &column, rows, width) || column >= width) return;
  const int64_t token = tokens[row];
  float v[kPack];
  if (token < 0 || token >= vocabulary) {
    for (int j = 0; j < kPack; ++j) v[j] = __uint_as_float(0x7fc00000u);
  } else {
    load(v, table, token * width + column);
  }
  store(out, row * width + column, v);
}

/// Tokens outside the vocabulary get the key after its last.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(int* keys, int* places, const int64_t* tokens, int64_t n, int64_t vocabulary) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t token = tokens[i];
    keys[i] = static_cast<int>(token < 0 || token >= vocabulary ? vocabulary : token);
    places[i] = static_cast<int>(i);
  }
}

struct SortSmem {
  int key[kChunk], place[kChunk];
  uint8_t digit[kChunk];
};

/// A block's chunk; returns how many.
__device__ __forceinline__ int read_chunk(SortSmem& sm, const int* keys, const int* places,
                                          int64_t n, int shift) {
  const int64_t first = int64_t{blockIdx.x} * kChunk;
  const int count = static_cast<int>(n - first < kChunk ? n - first : kChunk);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    sm.key[i] = keys[first + i];
    if (places != nullptr) sm.place[i] = places[first + i];
    sm.digit[i] = static_cast<uint8_t>(sm.key[i] >> shift & (kDigits - 1));
  }
  __syncthreads();
  return count;
}

/// counts [chunks, 256]: how often each digit occurs in a chunk.
__global__ void __launch_bounds__(kThreads)
    count_kernel(int* counts, const int* keys, int64_t n, int shift) {
  auto& sm = shared<SortSmem>();
  const int count = read_chunk(sm, keys, nullptr, n, shift);
  int own = 0;
  for (int i = 0; i < count; ++i) own += sm.digit[i] == threadIdx.x;
  counts[int64_t{blockIdx.x} * kDigits + threadIdx.x] = own;
}

struct ScanSmem {
  int total[kDigits];
};

/// One block: counts become the place of the chunk's first key with that digit.
__global__ void __launch_bounds__(kThreads) scan_kernel(int* counts, int64_t chunks) {
  auto& sm = shared<ScanSmem>();
  const int digit = threadIdx.x;
  int total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += counts[chunk * kDigits + digit];
  sm.total[digit] = total;
  __syncthreads();
  int place = 0;
  for (int d = 0; d < digit; ++d) place += sm.total[d];
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int count = counts[chunk * kDigits + digit];
    counts[chunk * kDigits + digit] = place;
    place += count;
  }
}

__global__ void __launch_bounds__(kThreads)
    scatter_kernel(int* out_keys, int* out_places, const int* keys, const int* places,
                   const int* first, int64_t n, int shift) {
  auto& sm = shared<SortSmem>();
  const int count = read_chunk(sm, keys, places, n, shift);
  int to = first[int64_t{blockIdx.x} * kDigits + threadIdx.x];
  for (int i = 0; i < count; ++i)
    if (sm.digit[i] == threadIdx.x) {
      out_keys[to] = sm.key[i];
      out_places[to] = sm.place[i];
      ++to;
    }
}

template <int kPack>
__device__ __forceinline__ void add_to(float* to, const float (&sum)[kPack]) {
  float v[kPack];
  load(v, {to, false}, 0);
  for (int j = 0; j < kPack; ++j) v[j] += sum[j];
  store({to, false}, 0, v);
}

/// partials [pieces, 2, C]: of a piece, the run that came from the piece before, and the one that
/// goes on into the next.
template <int kPack>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(float* table, float* partials, Elements grad_out, const int* keys, const int* places,
               int64_t n, int64_t width, int vocabulary) {
  int64_t piece, column;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  if (!own_pack<kPack>(&piece, &column, pieces, width)) return;  // whole warps
  const bool inside = column < width;
  const int64_t begin = piece * kPiece;
  const int count = static_cast<int>(n - begin < kPiece ? n - begin : kPiece);
  const int lane = threadIdx.x % 32;
  const int own_key = lane < count ? keys[begin + lane] : -1;
  const int own_place = lane < count ? places[begin + lane] : 0;
  const int before = begin > 0 ? keys[begin - 1] : -1;
  const int after = begin + count < n ? keys[begin + count] : -1;
  float sum[kPack] = {};
  int run_begin = 0;
  for (int first = 0; first < count; first += kAhead) {
    float rows[kAhead][kPack];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t place = __shfl_sync(kFullWarp, own_place, (first + k) % 32);
      if (inside && first + k < count) load(rows[k], grad_out, place * width + column);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = first + k;
      const int key = __shfl_sync(kFullWarp, own_key, i % 32);
      const int next = __shfl_sync(kFullWarp, own_key, (i + 1) % 32);
      if (!inside || i >= count) continue;
      for (int j = 0; j < kPack; ++j) sum[j] += rows[k][j];
      const bool last = i + 1 == count;
      if (!last && next == key) continue;
      // The run ends here, or with the piece.
      if (run_begin == 0 && key == before)
        store({partials, false}, piece * 2 * width + column, sum);
      else if (last && key == after)
        store({partials, false}, (piece * 2 + 1) * width + column, sum);
      else if (key < vocabulary)
        add_to(table + key * width + column, sum);
      for (int j = 0; j < kPack; ++j) sum[j] = 0;
      run_begin = i + 1;
    }
  }
}

/// The runs that begin in this warp's piece and go on into the next ones.
template <int kPack>
__global__ void __launch_bounds__(kThreads)
    join_kernel(float* table, const float* partials, const int* keys, int64_t n, int64_t width,
                int vocabulary) {
  int64_t piece, column;
  const int64_t pieces = (n + kPiece - 1) / kPiece;
  if (!own_pack<kPack>(&piece, &column, pieces, width)) return;
  const int64_t next = (piece + 1) * kPiece;
  if (next >= n || keys[next - 1] != keys[next]) return;
  const int key = keys[next];
  // The piece is all of one run that came from before: another warp's.
  const int64_t begin = piece * kPiece;
  if (begin > 0 && keys[begin] == key && keys[begin - 1] == key) return;
  if (key >= vocabulary) return;
  const bool inside = column < width;
  const Elements from{const_cast<float*>(partials), false};
  float sum[kPack] = {}, v[kPack] = {};
  if (inside) load(sum, from, (piece * 2 + 1) * width + column);
  for (int64_t first = piece + 1;; first += 32) {
    const int64_t own = (first + threadIdx.x % 32) * kPiece;
    const unsigned same = __ballot_sync(kFullWarp, own < n && keys[own] == key);
    int count = 0;  // pieces of the 32 that begin with the key: they are the first ones
    while (count < 32 && (same >> count & 1u)) ++count;
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      if (inside) load(v, from, (first + k) * 2 * width + column);
      for (int j = 0; j < kPack; ++j) sum[j] += v[j];
    }
    if (count < 32) break;
  }
  if (inside) add_to(table + key * width + column, sum);
}

/// Scratch of the backward, in the order it lies in memory.
struct Scratch {
  int64_t keys[2], places[2], counts, partials, bytes;
  Scratch(int64_t n, int64_t width) {
    bytes = 0;
    const auto take = [&](int64_t size) {
      const int64_t at = bytes;
      bytes += (size * 4 + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    for (int i = 0; i < 2; ++i) keys[i] = take(n), places[i] = take(n);
    counts = take((n + kChunk - 1) / kChunk * kDigits);
    partials = take((n + kPiece - 1) / kPiece * 2 * width);
  }
};

const int64_t* token_pointer(const TensorView& tokens) { return tokens.on_gpu<int64_t>(); }

}  // namespace

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens) {
  const int64_t rows = out.shape[0], width = out.shape[1];
  with_pack(pack_of({out, table}), [&](auto pack) {
    const int64_t strips = (width + 32 * pack - 1) / (32 * pack);
    launch(forward_kernel<pack>, blocks_for(rows * strips, kThreads / 32), kThreads, 0,
           context.stream(), elements_of(out), elements_of(table), token_pointer(tokens), rows,
           width, table.shape[0]);
  });
}

int64_t embedding_backward_workspace_bytes(int64_t tokens, int64_t, int64_t dim) {
  return Scratch(tokens, dim).bytes;
}

void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, void* workspace) {
  const int64_t n = grad_out.shape[0], width = grad_out.shape[1], vocabulary = grad_table.shape[0];
  LN_CHECK(n < INT32_MAX && vocabulary < INT32_MAX, "{} tokens of {}", n, vocabulary);
  const Scratch scratch(n, width);
  char* memory = static_cast<char*>(workspace);
  const auto integers = [&](int64_t at) { return reinterpret_cast<int*>(memory + at); };
  float* partials = reinterpret_cast<float*>(memory + scratch.partials);
  int* counts = integers(scratch.counts);
  void* stream = context.stream();
  launch(keys_kernel, grid_stride_blocks(n, kThreads), kThreads, 0, stream,
         integers(scratch.keys[0]), integers(scratch.places[0]), token_pointer(tokens), n,
         vocabulary);
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  int from = 0;
  for (int shift = 0; shift < 31 && vocabulary >> shift > 0; shift += 8, from = 1 - from) {
    int *keys = integers(scratch.keys[from]), *places = integers(scratch.places[from]);
    launch(count_kernel, blocks_for(chunks, 1), kThreads, sizeof(SortSmem), stream, counts, keys, n,
           shift);
    launch(scan_kernel, 1, kThreads, sizeof(ScanSmem), stream, counts, chunks);
    launch(scatter_kernel, blocks_for(chunks, 1), kThreads, sizeof(SortSmem), stream,
           integers(scratch.keys[1 - from]), integers(scratch.places[1 - from]), keys, places,
           counts, n, shift);
  }
  const int *keys = integers(scratch.keys[from]), *places = integers(scratch.places[from]);
  const int pack_size = pack_of({grad_out, grad_table});
  with_pack(pack_size, [&](auto pack) {
    const int64_t strips = (width + 32 * pack - 1) / (32 * pack);
    const unsigned blocks = blocks_for((n + kPiece - 1) / kPiece * strips, kThreads / 32);
    float* table = static_cast<float*>(grad_table.data);
    launch(sum_kernel<pack>, blocks, kThreads, 0, stream, table, partials, elements_of(grad_out),
           keys, places, n, width, static_cast<int>(vocabulary));
    launch(join_kernel<pack>, blocks, kThreads, 0, stream, table, partials, keys, n, width,
           static_cast<int>(vocabulary));
  });
}

}  // namespace longnet::cuda
