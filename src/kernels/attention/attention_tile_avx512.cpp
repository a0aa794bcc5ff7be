// Attention tiles compiled for AVX-512 (F, VL, BW, DQ); see attention_tile.inc.
#define LN_TILE_WIDTH 16
#define LN_TILE_NAMESPACE tile_avx512
#define LN_TILE_FUNCTIONS tile_functions_avx512
#include "kernels/attention/attention_tile.inc"
