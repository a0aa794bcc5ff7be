// Attention tiles compiled for AVX2 and FMA; see attention_tile.inc.
#define LN_TILE_WIDTH 8
#define LN_TILE_NAMESPACE tile_avx2
#define LN_TILE_FUNCTIONS tile_functions_avx2
#include "kernels/attention/attention_tile.inc"
