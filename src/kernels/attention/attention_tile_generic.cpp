// Attention tiles compiled for the instructions every x86-64 (and any other) machine has; see
// attention_tile.inc.
#define LN_TILE_WIDTH 4
#define LN_TILE_NAMESPACE tile_generic
#define LN_TILE_FUNCTIONS tile_functions_generic
#include "kernels/attention/attention_tile.inc"
