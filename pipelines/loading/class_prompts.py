"""Class-conditional pipelines as text-to-image ones."""

from __future__ import annotations

from typing import Any

from diffusers import DiTPipeline

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError

IMAGENET_CLASSES = 1000


class ClassPromptPipeline(DiTPipeline):  # type: ignore[misc]  # diffusers has no types
    """A `DiTPipeline` prompted by ImageNet classes: numbers, or names from model_index.json."""

    def __call__(
        self,
        prompt: list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.5,
        generator: Any = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> Any:
        """One picture per prompt, which names a class; arguments as for `DiTPipeline`.

        Args:
            height, width: only the denoiser's own size.
            output_type: "np", "pil" or "pt"; "latent" decodes all the same.

        Raises:
            PipelineError: no such class, or another size.
        """
        size = self.transformer.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        if (height or size, width or size) != (size, size):
            raise PipelineError(
                f"{type(self).__name__} makes pictures of {size}×{size}, and {height}×{width} were asked for; set "
                f"model.call.height={size} model.call.width={size}"
            )
        return super().__call__(
            class_labels=[self.class_of(text) for text in prompt],
            guidance_scale=guidance_scale,
            generator=generator,
            num_inference_steps=num_inference_steps,
            output_type="np" if output_type == "latent" else output_type,
            return_dict=return_dict,
        )

    def class_of(self, text: str) -> int:
        text = text.strip()
        if text.isdecimal() and int(text) < IMAGENET_CLASSES:
            return int(text)
        names = {label.lower(): number for label, number in self.labels.items()}
        if text.lower() not in names:
            hint = nearest(text.lower(), names) if names else "this pipeline lists no names"
            raise PipelineError(
                f"the prompt {text!r} names no class; give a number below {IMAGENET_CLASSES} or a class name ({hint})"
            )
        return int(names[text.lower()])
