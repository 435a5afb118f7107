"""A pipeline: a class of diffusers with something changed."""

from typing import Any

from diffusers import StableDiffusion3Pipeline


class Praised(StableDiffusion3Pipeline):
    """Asks for every prompt with a word of praise."""

    def __call__(self, prompt: list[str], **arguments: Any) -> Any:
        return super().__call__(prompt=[f"{text}, beautiful" for text in prompt], **arguments)
