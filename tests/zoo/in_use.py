"""A shipped pipeline, float and quantized, for tests of what its users do to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import segquant
from segquant import presets
from segquant_bench.pipelines.config.sections import ModelConfig
from segquant_bench.pipelines.loading.files import resolve_directory
from segquant_bench.pipelines.loading.models import denoiser_name, load_pipeline
from segquant_bench.pipelines.sampling.generate import bound_inputs
from segquant_bench.pipelines.zoo import card

DYNAMIC, STATIC = "rtn", "segquant_g"
METHODS = {
    DYNAMIC: partial(presets.rtn, "w8a8_dynamic"),
    STATIC: partial(presets.segquant_g, "w8a8_tensor", alpha=0.5),  # not searched: fast
}
STEPS, MOST = 2, 7
LORA_RANK = 4
Parts = dict[str, nn.Module]


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


@dataclass
class InUse:
    """One family. `parts` are its networks that are quantized: the denoiser, and a ControlNet if there is one."""

    family: str
    made: dict[str, Parts] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def config(self) -> ModelConfig:
        return card.load_run(self.family).model

    @cached_property
    def pipe(self) -> Any:
        """The float pipeline; tests leave it as it is."""
        pipe: Any = load_pipeline(self.config, resolve_directory(self.config))
        if self.config.control:  # encodes control pictures with draws of torch's generator, which threads share
            pipe.vae.encode = partial(_encoded, pipe.vae.encode)
        return pipe

    @cached_property
    def denoiser(self) -> str:
        return denoiser_name(self.pipe, self.config.denoiser)

    @property
    def parts(self) -> Parts:
        names = (self.denoiser, "controlnet")
        return {name: self.pipe.components[name] for name in names if name in self.pipe.components}

    @cached_property
    def prompts(self) -> list[str]:
        return card.evaluation_prompts(MOST)

    @cached_property
    def controls(self) -> list[Any]:
        """Control pictures, where the pipeline takes some."""
        return list(card.edges_of(self.prompts)(range(MOST))["control_image"]) if self.config.control else []

    def with_parts(self, parts: Parts) -> Any:
        """A pipeline of the same components around these networks, with a scheduler and tokenizers of its own.

        Schedulers count steps, and fast tokenizers store each call's padding: threads cannot share them, float or
        quantized.
        """
        pipe = copy.copy(self.pipe)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        for name, part in self.pipe.components.items():
            if isinstance(part, PreTrainedTokenizerBase):
                setattr(pipe, name, copy.deepcopy(part))
        for name, part in parts.items():
            setattr(pipe, name, part)
        return pipe

    def float_pipe(self) -> Any:
        return self.with_parts(copy.deepcopy(self.parts))

    def quantized(self, method: str = DYNAMIC) -> Any:
        """A pipeline around copies of the networks that `method` quantized once."""
        if method not in self.made:
            pipe = self.float_pipe()
            self.quantize_(pipe, method)
            self.made[method] = {name: pipe.components[name] for name in self.parts}
        return self.with_parts(copy.deepcopy(self.made[method]))

    def quantize_(self, pipe: Any, method: str = DYNAMIC) -> None:
        """As a script does it: collect the inputs of each network, then replace its layers."""
        calls: dict[str, list[dict[str, Any]]] = {name: [] for name in self.parts}

        def collect(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: calls[name].append(bound_inputs(module, args, kwargs))

        hooks = [
            pipe.components[name].register_forward_pre_hook(collect(name), with_kwargs=True) for name in self.parts
        ]
        self.latents(pipe)
        for hook in hooks:
            hook.remove()
        for name in self.parts:
            chosen = METHODS[method](convolutions=self.config.convolutions)
            segquant.quantize_(pipe.components[name], chosen, calls[name])

    def latents(self, pipe: Any, indices: tuple[int, ...] = (0, 1), **more: Any) -> Tensor:
        """What the pipeline draws for these prompts, each with a seed of its own."""
        call = {**self.config.call.arguments(), "num_inference_steps": STEPS, "output_type": "latent", **more}
        if self.controls:
            call["control_image"] = [self.controls[index] for index in indices]
        generators = [torch.Generator().manual_seed(index) for index in indices]
        found: Tensor = pipe(prompt=[self.prompts[index] for index in indices], generator=generators, **call).images
        return found

    def layer_calls(
        self, pipe: Any, indices: tuple[int, ...] = (0, 1)
    ) -> dict[segquant.QuantLinear, tuple[Tensor, Tensor]]:
        """The denoiser's quantized layers, each with its last input and output."""
        seen: dict[segquant.QuantLinear, tuple[Tensor, Tensor]] = {}
        layers = [part for part in getattr(pipe, self.denoiser).modules() if isinstance(part, segquant.QuantLinear)]
        hooks = [
            layer.register_forward_hook(lambda layer, args, found: seen.update({layer: (args[0], found)}))
            for layer in layers
        ]
        self.latents(pipe, indices)
        for hook in hooks:
            hook.remove()
        assert len(seen) > 0.9 * len(layers)
        return seen

    @cached_property
    def exact(self) -> Tensor:
        """The float model's latents."""
        return self.latents(self.pipe)

    def plain(self, method: str = DYNAMIC) -> Tensor:
        """The quantized pipeline's latents, with nothing done to it."""
        if method not in self.drawn:
            self.drawn[method] = self.latents(self.quantized(method))
        return self.drawn[method]

    def lora(self, seed: int = 0) -> dict[str, Tensor]:
        """An adapter of the denoiser's attention, as a file of diffusers holds it; it moves the pictures."""
        g = torch.Generator().manual_seed(seed)
        state = {}
        for name, module in self.parts[self.denoiser].named_modules():
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0")) and isinstance(module, nn.Linear):
                down = torch.randn(LORA_RANK, module.in_features, generator=g) / module.in_features**0.5
                up = torch.randn(module.out_features, LORA_RANK, generator=g) * 0.2
                state |= {f"{self.denoiser}.{name}.lora_A.weight": down, f"{self.denoiser}.{name}.lora_B.weight": up}
        return state


def _encoded(encode: Callable[..., Any], pictures: Tensor) -> Any:
    """The mean instead of a draw."""
    found = encode(pictures)
    found.latent_dist.sample = found.latent_dist.mode
    return found


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks."""
    lists = [child for child in model.modules() if isinstance(child, nn.ModuleList)]
    found = [block for child in lists for block in child if "Transformer" in type(block).__name__]
    assert found
    return found
