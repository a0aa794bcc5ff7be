// LN_CLONES: compiles a function once per instruction set and picks the best at load time.
//
// For plain row loops that the compiler vectorises; LONGNET_ISA does not reach them (the loader
// picks). A function with LN_CLONES must be self-contained: what it calls is inlined into it
// (LN_INLINE) or it calls nothing, and it holds no OpenMP region.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LN_CLONES
#endif
// Functions marked LN_INLINE can also be called from kernel files.
#if defined(__CUDACC__)
#define LN_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define LN_INLINE inline __attribute__((always_inline))
#endif
