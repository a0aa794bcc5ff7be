// Attention tiles compiled for the baseline instruction set of x86-64 (or of any other machine);
// see attention_tile.inc.
#define LN_TILE_WIDTH 4
#define LN_TILE_NAMESPACE tile_generic
#define LN_TILE_FUNCTIONS tile_functions_generic
#include "kernels/attention/attention_tile.inc"
