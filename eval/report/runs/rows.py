"""The denoiser calls that output errors are of, and their prompts."""

from __future__ import annotations

from segquant_bench.eval.results import RunResult


def row_prompts(run: RunResult) -> tuple[int, ...] | None:
    """The prompt of each of `per_row_output_errors`; None if nothing tells.

    Older results do not say: there each held-out prompt had as many calls as steps, in order of prompts.
    """
    if run.per_row_prompts:
        return run.per_row_prompts
    calibration = run.config.get("calibration") or {}
    call = (run.config.get("model") or {}).get("call") or {}
    each = calibration.get("steps_per_prompt") or call.get("num_inference_steps")
    prompts, rows = calibration.get("held_out"), len(run.per_row_output_errors)
    if not isinstance(each, int) or not isinstance(prompts, int) or rows != each * prompts:
        return None
    return tuple(row // each for row in range(rows))
