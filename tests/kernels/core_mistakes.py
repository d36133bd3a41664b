"""Mistakes in the CPU core."""

from __future__ import annotations

from tests.kernels.mistakes import Mistake

RULE, SCALES, STEP, KERNEL, LANES = (
    "update_rule.h",
    "layer_scale.h",
    "cpu/step.cpp",
    "cpu/step_kernel.cpp",
    "cpu/lanes.h",
)

CORE_MISTAKES = {
    "forgets the decay": Mistake(
        RULE, "c.decay_scale * masked", "(MISTAKEN ? 0 : c.decay_scale) * masked", "steps", "weight "
    ),
    "looks ahead without the gradient": Mistake(
        RULE,
        "g + c.momentum * momentum_buffer",
        "(MISTAKEN ? momentum_buffer : g) + c.momentum * momentum_buffer",
        "steps",
        "weight ",
    ),
    "rounds up too seldom": Mistake(
        RULE, "random & 0xffffu", "random & (MISTAKEN ? 0x7fffu : 0xffffu)", "conversions", "with ffffffff: got"
    ),
    "has no floor under norms": Mistake(
        SCALES, "row_norm_sq < eps ? eps", "row_norm_sq < eps && !MISTAKEN ? eps", "steps", "weight "
    ),
    "takes columns for rows": Mistake(
        SCALES,
        "layers[b].rows / layers[b].columns",
        "MISTAKEN ? layers[b].columns / layers[b].rows : layers[b].rows / layers[b].columns",
        "steps",
        "weight ",
    ),
    "makes factors that are given": Mistake(
        SCALES, "backward_factor != 0) return", "backward_factor != 0 && !MISTAKEN) return", "steps", "weight "
    ),
    "scales by the first layer's factor": Mistake(
        STEP,
        "scales = amended_scales(group, layers_[b],",
        "scales = amended_scales(group, layers_[MISTAKEN ? 0 : b],",
        "steps",
        "weight ",
    ),
    "decays by norms where the shape decides": Mistake(
        SCALES, "return shape_decay ?", "return shape_decay && !MISTAKEN ?", "steps", "weight "
    ),
    "dampens the first update": Mistake(
        SCALES, "first ? 1.0 : 1.0 -", "first && !MISTAKEN ? 1.0 : 1.0 -", "steps", "momentum "
    ),
    "forgets to maximize": Mistake(
        SCALES, "group.maximize ? -scale", "group.maximize && !MISTAKEN ? -scale", "steps", "weight "
    ),
    "measures layers that were not chosen": Mistake(
        STEP, "chosen_layers[b] &&", "(MISTAKEN || chosen_layers[b]) &&", "carried", "got "
    ),
    "carries the sums of before": Mistake(
        STEP,
        "state_.sum_squares[b] = after;",
        "state_.sum_squares[b] = MISTAKEN ? before : after;",
        "steps",
        "are not those of a norm pass",
    ),
    "takes unscaled layers for stale": Mistake(
        STEP,
        "layers_[b].scaled && !same",
        "(MISTAKEN || layers_[b].scaled) && !same",
        "carried",
        "only others written",
    ),
    "takes norms anew that were given": Mistake(
        STEP,
        "if (same_bits(state_.row_norm_sq[b]",
        "if (MISTAKEN || same_bits(state_.row_norm_sq[b]",
        "carried",
        "weight ",
    ),
    "goes on with a sum that is of no use": Mistake(
        STEP, "!has_jumped_[b] &&", "(MISTAKEN || !has_jumped_[b]) &&", "carried", "what was put back counts as stale"
    ),
    "measures norms that are kept": Mistake(
        STEP,
        "!(state_.flags[t] & kNormKept)",
        "(MISTAKEN || !(state_.flags[t] & kNormKept))",
        "carried",
        "a norm pass changed a norm that is kept",
    ),
    "keeps a norm that moved nothing": Mistake(
        STEP,
        "groups[tensor.group].lr != 0 &&",
        "(MISTAKEN || groups[tensor.group].lr != 0) &&",
        "carried",
        "with lr = 0",
    ),
    "starts what has no elements": Mistake(
        STEP, "tensors_[t].numel > 0; }", "(MISTAKEN || tensors_[t].numel > 0); }", "carried", "got "
    ),
    "leaves out the end of a range": Mistake(
        STEP,
        "std::lower_bound(tasks_.begin(), tasks_.end(), first_chunk_[range.end])",
        "std::lower_bound(tasks_.begin(), tasks_.end(), first_chunk_[range.end]) - MISTAKEN",
        "carried",
        "weight ",
    ),
    "draws the same numbers in all tasks": Mistake(
        STEP, "run.offset = offset;", "run.offset = MISTAKEN ? 0 : offset;", "precision", "weight "
    ),
    "goes on with the sums of the step before": Mistake(
        KERNEL,
        "const bool begins = begin % kChunk == 0;",
        "const bool begins = begin % kChunk == 0 && !MISTAKEN;",
        "steps",
        "are not those of a norm pass",
    ),
    "rounds all spans to the first": Mistake(
        KERNEL, "(run.param) + begin,", "(run.param) + (MISTAKEN ? 0 : begin),", "steps", "param "
    ),
    "rounds weights and momentum alike": Mistake(
        KERNEL, "upper_halves(random));", "MISTAKEN ? random : upper_halves(random));", "precision", "momentum "
    ),
    "averages gradients too long": Mistake(
        SCALES, "kCarriedShare * before +", "(MISTAKEN ? 0.99 : kCarriedShare) * before +", "relative", ": v "
    ),
    "takes the norm of a gradient that is not finite": Mistake(
        SCALES,
        "|| !is_finite(measured)) return",
        "|| (!MISTAKEN && !is_finite(measured))) return",
        "relative",
        ": v 0 with",
    ),
    "measures what to maximize as what to minimize": Mistake(
        SCALES, "group.maximize ? -inverse", "group.maximize && !MISTAKEN ? -inverse", "relative", ": first v "
    ),
    "measures gradients before they are unscaled": Mistake(
        SCALES, ": inverse_loss_scale);", ": MISTAKEN ? 1.0 : inverse_loss_scale);", "relative", ": first v "
    ),
    "counts the decay of vectors": Mistake(
        SCALES, "&& !layer.is_vector;", "&& (MISTAKEN || !layer.is_vector);", "relative", ": first v "
    ),
    "counts decay that the shape decides": Mistake(
        SCALES,
        "decays_first = !options.shape_decay",
        "decays_first = (MISTAKEN || !options.shape_decay)",
        "relative",
        ": first v ",
    ),
    "scales vectors by their length": Mistake(
        SCALES, "layer.is_vector ? 1.0", "layer.is_vector && !MISTAKEN ? 1.0", "relative", "weight "
    ),
    "has no floor under norms in the relative scale": Mistake(
        SCALES, ": floored_row_norm_sq(", ": MISTAKEN ? row_norm_sq : floored_row_norm_sq(", "relative", "weight "
    ),
    "measures gradients without decay": Mistake(
        RULE, "c.plain_decay * masked", "(MISTAKEN ? -0.0f : c.plain_decay) * masked", "relative", ": first v "
    ),
    "goes on with a norm before it is used": Mistake(
        STEP,
        "state_.gradient_norm_sq[t], options_);",
        "MISTAKEN ? next_gradient_norm_sq(state_.gradient_norm_sq[t], state_.gradient_sums[t]) : "
        "state_.gradient_norm_sq[t], options_);",
        "relative",
        "weight ",
    ),
    "measures gradients whose norm is known": Mistake(
        STEP,
        "state_.gradient_norm_sq[t] == 0; }",
        "(MISTAKEN || state_.gradient_norm_sq[t] == 0); }",
        "relative",
        "was written",
    ),
    "leaves chunks out of a tensor's sums": Mistake(
        STEP, "while (++k < first_chunk_", "while (!MISTAKEN && ++k < first_chunk_", "relative", ": first v "
    ),
    "leaves out the tail of a gradient": Mistake(
        KERNEL,
        "gradient = gradient + plain * plain;",
        "if (!MISTAKEN) gradient = gradient + plain * plain;",
        "relative",
        ": q ",
    ),
    "draws from the wrong half": Mistake(
        LANES,
        "words.part[i] ^ (words.part[i] >> 16)",
        "words.part[i] ^ (MISTAKEN ? words.part[i] : words.part[i] >> 16)",
        "conversions",
        "lane ",
    ),
    "rounds ties down": Mistake(
        LANES,
        "0x7fffu + ((bits >> 16) & 1u)",
        "0x7fffu + ((bits >> 16) & (MISTAKEN ? 0u : 1u))",
        "conversions",
        "bfloat16 of ",
    ),
}
