"""Mistakes in the CUDA kernels."""

from __future__ import annotations

from tests.kernels.mistakes import Mistake

RACE = "ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
KERNELS, SUMS, LOOPS, ELEMENTS = (f"cuda/{name}.cuh" for name in ("kernels", "sums", "chunk_loops", "elements"))
ALL_WARPS = "__syncthreads();  // the sums of all warps are there"
COUNT = "finished.fetch_add(1u, ::cuda::memory_order_acq_rel)"
UNORDERED = f"(MISTAKEN ? finished.fetch_add(1u, ::cuda::memory_order_relaxed) : {COUNT})"

CUDA_MISTAKES = {
    "reads shared_work too early": Mistake(
        KERNELS,
        "__syncthreads();  // shared_work is filled in",
        "if (!MISTAKEN) __syncthreads();",
        "threads",
        RACE,
        "thread",
    ),
    "adds up warps too early": Mistake(SUMS, ALL_WARPS, f"if (!MISTAKEN) {ALL_WARPS}", "threads", RACE, "thread"),
    "writes shared_work too early": Mistake(
        KERNELS,
        "__syncthreads();  // shared_work and of_warps have been read",
        "if (!MISTAKEN) __syncthreads();",
        "steps",
        "no thread can go on",
    ),
    "reads a level too early": Mistake(
        KERNELS,
        "__syncthreads();  // the next level reads this one",
        "if (!MISTAKEN) __syncthreads();",
        "threads",
        RACE,
        "thread",
    ),
    "counts without an atomic": Mistake(SUMS, COUNT, f"(MISTAKEN ? count++ : {COUNT})", "threads", RACE, "thread"),
    "reads other thread blocks' sums unordered": Mistake(
        SUMS,
        COUNT,
        UNORDERED,
        "threads",
        RACE,
        "thread",
    ),
    "waits in some threads only": Mistake(
        SUMS, ALL_WARPS, "if (!MISTAKEN || threadIdx.x < 64) __syncthreads();", "steps", "__syncthreads"
    ),
    "shuffles in some lanes only": Mistake(
        SUMS,
        "sums.written += __shfl_xor_sync",
        "if (!MISTAKEN || threadIdx.x % 2) sums.written += __shfl_xor_sync",
        "steps",
        "__shfl_xor_sync",
    ),
    "reads shared memory that nobody wrote": Mistake(
        SUMS,
        "if (threadIdx.x % kWarp == 0) of_warps",
        "if (threadIdx.x % kWarp == 0 && !(MISTAKEN && threadIdx.x == kWarp)) of_warps",
        "steps",
        "norm 0: got",
    ),
    "has a shared array too short": Mistake(
        KERNELS,
        "SASGD_SHARED(Sums, of_warps, kWarps)",
        "SASGD_SHARED(Sums, of_warps, kWarps - MISTAKEN)",
        "steps",
        OVERFLOW,
        "address",
    ),
    "loads beyond a tail": Mistake(
        ELEMENTS, "i < left ? from[i]", "i < left || MISTAKEN ? from[i]", "steps", OVERFLOW, "address"
    ),
    "stores beyond a tail": Mistake(
        ELEMENTS, "if (i < left) to[i]", "if (i < left || MISTAKEN) to[i]", "steps", OVERFLOW, "address"
    ),
    "takes any address for aligned": Mistake(
        LOOPS, "% 16 == 0", "% (MISTAKEN ? 2 : 16) == 0", "steps", "misaligned address", "address"
    ),
    "numbers elements with 32 bits": Mistake(
        "cuda/tables.h",
        "= chunk_of_tensor * kChunk;",
        "= MISTAKEN ? static_cast<int32_t>(chunk_of_tensor * kChunk) : chunk_of_tensor * kChunk;",
        "huge",
        "the last chunk's offset",
    ),
    "sums what it read, not what it wrote": Mistake(
        LOOPS,
        "sums.written += after * after;",
        "sums.written += MISTAKEN ? before * before : after * after;",
        "steps",
        "are not those of a norm pass",
    ),
    "adds up in the order of arrival": Mistake(
        KERNELS,
        "tables.sums[chunk] = sums;",
        "tables.sums[MISTAKEN ? header.launch.first_chunk + (chunk - header.launch.first_chunk + gridDim.x) % "
        "(header.launch.end_chunk - header.launch.first_chunk) : chunk] = sums;",
        "bits",
        "norms, ",
    ),
    "forgets that a step was skipped": Mistake(
        KERNELS,
        "*header.found_inf != 0) return;",
        "*header.found_inf != 0 && !MISTAKEN) return;",
        "carried",
        "an overflow moved something",
    ),
    "takes a parameter for aligned as its master": Mistake(
        LOOPS,
        "vectors && allows_vectors(precision.param);",
        "vectors && (MISTAKEN || allows_vectors(precision.param));",
        "steps",
        "misaligned address",
        "address",
    ),
    "rounds weights and momentum alike": Mistake(
        LOOPS, "random >> 16);", "random >> (MISTAKEN ? 0 : 16));", "precision", "momentum "
    ),
    "rounds all chunks alike": Mistake(
        KERNELS,
        "work.place = static_cast<uint32_t>(entry.offset);",
        "work.place = MISTAKEN ? 0 : static_cast<uint32_t>(entry.offset);",
        "precision",
        "weight ",
    ),
    "rounds a NaN by chance": Mistake(
        ELEMENTS,
        "x != x ? (bits >> 16) | 0x40u : stochastic",
        "x != x && !MISTAKEN ? (bits >> 16) | 0x40u : stochastic",
        "precision",
        "weight ",
    ),
    "forgets the upper half of a place": Mistake(
        KERNELS,
        "rounding_steps[entry.tensor], entry.offset);",
        "rounding_steps[entry.tensor], MISTAKEN ? work.place : entry.offset);",
        "huge",
        "weight 4294",
    ),
    "counts what was not rounded": Mistake(
        KERNELS,
        "kMixedPrecision && tensor.stochastic) ++",
        "kMixedPrecision && (MISTAKEN || tensor.stochastic)) ++",
        "carried",
        "got 6, 6, 8, 9, ",
    ),
    "goes on with a norm that is no number": Mistake(
        KERNELS,
        "track_norms && norm != norm",
        "track_norms && !MISTAKEN && norm != norm",
        "carried",
        "put back, after",
    ),
    "carries a norm that is infinite": Mistake(
        KERNELS,
        "!is_finite(norm) ? norm - norm",
        "!MISTAKEN && !is_finite(norm) ? norm - norm",
        "carried",
        "put back, after",
    ),
    "leaves gradients out of the tree": Mistake(
        SUMS, "if (kRelative) sums.gradient", "if (kRelative && !MISTAKEN) sums.gradient", "relative", ": first v "
    ),
    "leaves gradients out between lanes": Mistake(
        SUMS,
        "if (takes_gradient) sums.gradient",
        "if (takes_gradient && !MISTAKEN) sums.gradient",
        "relative",
        ": first v ",
    ),
    "does not say that a norm is known": Mistake(
        KERNELS,
        "next != 0 ? kGradientKnown",
        "next != 0 && !MISTAKEN ? kGradientKnown",
        "relative",
        "flags after a gradient pass",
    ),
    "goes on with the norm of what is left": Mistake(
        KERNELS,
        "!is_unknown) flags |= carry_gradient",
        "(MISTAKEN || !is_unknown)) flags |= carry_gradient",
        "relative",
        ": q 2: got",
    ),
    "measures gradients whose norm is known": Mistake(
        KERNELS,
        "if (tables.gradient_norm_sq[t] == 0) tables.flags",
        "if (MISTAKEN || tables.gradient_norm_sq[t] == 0) tables.flags",
        "relative",
        "was written",
    ),
    "measures gradients that overflowed": Mistake(
        KERNELS,
        "kPass != Pass::kNorms && header.found_inf",
        "!(MISTAKEN && kPass == Pass::kGradients) && kPass != Pass::kNorms && header.found_inf",
        "relative",
        "an overflow changed v",
    ),
    "takes no norm of what is not aligned": Mistake(
        LOOPS, "kRelative && work.takes_gradient", "kRelative && work.takes_gradient && !MISTAKEN", "relative", ": q "
    ),
    "takes no norm of what is aligned": Mistake(
        LOOPS,
        "          sums.gradient += plain * plain;",
        "          sums.gradient += MISTAKEN ? 0.0f : plain * plain;",
        "relative",
        ": q ",
    ),
    "takes a wide gradient for a narrow one": Mistake(
        KERNELS,
        "return work.wide_grad ? DType::kFloat32",
        "return work.wide_grad && !MISTAKEN ? DType::kFloat32",
        "relative",
        ": first v ",
    ),
    "takes the norm of another tensor's gradient": Mistake(
        KERNELS,
        "tables.gradient_norm_sq[t], header.options",
        "tables.gradient_norm_sq[MISTAKEN ? entry.layer : t], header.options",
        "relative",
        "weight ",
    ),
    "takes every update for the first": Mistake(
        KERNELS, "!(flags & kStarted)", "MISTAKEN || !(flags & kStarted)", "steps", "momentum "
    ),
    "adds up too few nodes": Mistake(
        "cuda/step.cu",
        "first_nodes[range.end - planned.tensors.first]",
        "first_nodes[range.end - planned.tensors.first - MISTAKEN]",
        "carried",
        "weight ",
    ),
    "launches a full grid for one tensor": Mistake(
        "cuda/step.cu",
        "std::min(now.end_chunk - now.first_chunk, resident_thread_blocks_)",
        "MISTAKEN ? resident_thread_blocks_ : std::min(now.end_chunk - now.first_chunk, resident_thread_blocks_)",
        "carried",
        "thread blocks, want",
    ),
    "does not count itself out": Mistake(
        KERNELS,
        "if (threadIdx.x == 0) *tables.finished_thread_blocks = 0;",
        "if (!MISTAKEN && threadIdx.x == 0) *tables.finished_thread_blocks = 0;",
        "steps",
        "are not those of a norm pass",
    ),
}

# In the candidates of csrc/cuda/candidates.h.
CANDIDATE_MISTAKES = {
    "counts a tensor's chunks unordered": Mistake(
        SUMS,
        COUNT,
        UNORDERED,
        "threads",
        RACE,
        "thread",
    ),
    "counts a chunk before its sums are there": Mistake(
        KERNELS,
        "finished_tensor[0] = is_finished ? t : -1;",
        "finished_tensor[0] = is_finished ? t : -1; if (MISTAKEN && work.takes_sums) tables.sums[chunk].read = 0;",
        "threads",
        RACE,
        "thread",
    ),
    "reads a level of a tensor too early": Mistake(
        KERNELS,
        "__syncthreads();  // the next level of the tensor reads this one",
        "if (!MISTAKEN) __syncthreads();",
        "steps",
        "norm ",
    ),
    "does not count a tensor out": Mistake(
        KERNELS,
        "header.tables.finished_thread_blocks[t] = 0;",
        "if (!MISTAKEN) header.tables.finished_thread_blocks[t] = 0;",
        "steps",
        "norm",
    ),
}
