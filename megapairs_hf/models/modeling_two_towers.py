"""Two towers, any image encoder and any text encoder, with a small head on each (compare LiT, Zhai et al. 2022).

This file is copied beside the weights of a saved model, so it imports nothing but torch and transformers. The heads
bring both towers to one length; a joint input is the sum of the two outputs, normalized by the module that follows
(paper, section 3.2, eq. 2). What surprises: EfficientNet-lite is here because transformers has no class for it, and it
has no batch norm: that of the published weights is folded into its convolutions where they are converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, gelu, pad, relu6
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, Siglip2TextModel, SiglipTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# repeats, kernel, stride, expansion and channels of the seven stages of EfficientNet-B0, of which lite0 is one
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]  # fmt: skip  # noqa: E501


class EfficientNetLiteConfig(PretrainedConfig):
    """EfficientNet-lite0: EfficientNet-B0 without squeeze and excitation, with ReLU6.

    Attributes:
        stages: repeats, kernel, stride, expansion and channels of each.
        stem_size: channels of the first convolution.
        hidden_size: channels of the last, the size of the output.
        image_size: side of the input in pixels.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        stages: Any = None,
        stem_size: int = 32,
        hidden_size: int = 1280,
        image_size: int = 224,
        **settings: Any,
    ) -> None:
        self.stages = [list(stage) for stage in (stages or STAGES)]
        self.stem_size, self.hidden_size, self.image_size = stem_size, hidden_size, image_size
        super().__init__(**settings)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: where it is odd, the right and the lower side have one more."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tensor[B, C, H, W] to Tensor[B, C', ⌈H / stride⌉, ⌈W / stride⌉]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in pixels.shape[-2:])
        if down % 2 or across % 2:
            pixels = pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
            down = across = 0
        return conv2d(pixels, self.weight, self.bias, self.stride, (down // 2, across // 2), 1, self.groups)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, filter each channel by itself, narrow."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = SameConv(channels, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, width, 1)
        self.shortcut = stride == 1 and channels == width

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tensor[B, C, H, W] to Tensor[B, C', H', W']."""
        wide = pixels if self.expand is None else relu6(self.expand(pixels))
        narrow = self.project(relu6(self.depthwise(wide)))
        return pixels + narrow if self.shortcut else narrow


class EfficientNetLiteModel(PreTrainedModel):
    """The features of an EfficientNet-lite, without its classifier."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, config.stem_size, 3, 2)
        blocks, channels = [], config.stem_size
        for repeats, kernel, stride, expansion, width in config.stages:
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, width, kernel, stride if i == 0 else 1, expansion))
                channels = width
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Feature maps (Tensor[B, C, H / 32, W / 32]) of images (Tensor[B, 3, H, W]), and their means."""
        # nearly twice as fast on a processor
        features = relu6(self.stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            features = block(features)
        features = relu6(self.head(features))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean((2, 3)))


class TwoTowersConfig(PretrainedConfig):
    """What two towers are made of.

    Attributes:
        vision_config: of the image encoder.
        text_config: of the text encoder.
        vision_size: of what the image encoder gives; None for the hidden size of its configuration.
        text_size: of what the text encoder gives, likewise.
        image_pooling: `pooler` (the model's own), `cls` (the first token) or `mean` (of the patches, or of the area).
        text_pooling: `mean` (of the tokens), `cls` or `pooler`.
        projection_dim: size of the embeddings.
        head_size: width inside the heads.
        head_dropout: dropout inside the heads while they are trained.
    """

    model_type = "two_towers"

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        vision_size: int | None = None,
        text_size: int | None = None,
        image_pooling: str = "pooler",
        text_pooling: str = "mean",
        projection_dim: int = 256,
        head_size: int = 512,
        head_dropout: float = 0.1,
        **settings: Any,
    ) -> None:
        self.vision_config, self.text_config = read_config(vision_config), read_config(text_config)
        self.vision_size, self.text_size = vision_size, text_size
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        self.projection_dim, self.head_size, self.head_dropout = projection_dim, head_size, head_dropout
        super().__init__(**settings)


def read_config(values: Any) -> Any:
    """The configuration of a tower from the dictionary that config.json holds."""
    if not isinstance(values, dict):
        return values
    if values["model_type"] == EfficientNetLiteConfig.model_type:
        return EfficientNetLiteConfig.from_dict(values)
    return AutoConfig.for_model(**values)


def tower_class(config: Any) -> Any:
    """What makes a tower of a configuration: its class where transformers' `AutoModel` does not know it."""
    classes = (EfficientNetLiteModel, SiglipTextModel, Siglip2TextModel)
    return {one.config_class.model_type: one for one in classes}.get(config.model_type, AutoModel)


def new_tower(config: Any) -> PreTrainedModel:
    """A tower with random weights, into which those of the checkpoint are loaded."""
    known = tower_class(config)
    return known.from_config(config) if known is AutoModel else known(config)


class Head(nn.Module):
    """A linear map plus a small residual MLP, from a tower's output to the embeddings."""

    def __init__(self, size: int, inner: int, out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.linear = nn.Linear(size, out, bias=False)
        self.widen, self.narrow = nn.Linear(size, inner), nn.Linear(inner, out, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Tensor[B, D] to Tensor[B, projection_dim]."""
        features = self.norm(features)
        return self.linear(features) + self.narrow(self.dropout(gelu(self.widen(features))))

    def scale(self, factor: float) -> None:
        """Multiply every output by a number."""
        with torch.no_grad():
            self.linear.weight.mul_(factor)
            self.narrow.weight.mul_(factor)


class TwoTowersModel(PreTrainedModel):
    """Any image encoder and any text encoder with a head on each, and score fusion.

    Attributes:
        vision_model: the image encoder.
        text_model: the text encoder.
        vision_head: from what the image encoder gives to the embedding.
        text_head: from what the text encoder gives to the embedding.
    """

    config_class = TwoTowersConfig
    input_modalities = ("image", "text")
    _supports_sdpa = True

    def __init__(self, config: TwoTowersConfig) -> None:
        super().__init__(config)
        self.vision_model = new_tower(config.vision_config)
        self.text_model = new_tower(config.text_config)
        shape = (config.head_size, config.projection_dim, config.head_dropout)
        self.vision_head = Head(config.vision_size or config.vision_config.hidden_size, *shape)
        self.text_head = Head(config.text_size or config.text_config.hidden_size, *shape)
        self.post_init()

    def image_outputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the image encoder gives (Tensor[B, D]) for images (Tensor[B, 3, H, W]), before the head."""
        output = self.vision_model(pixel_values=pixel_values)
        if self.config.image_pooling == "pooler":
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        if self.config.image_pooling == "cls":
            return hidden[:, 0]
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        # class and register tokens come before the patches
        patch = self.config.vision_config.patch_size
        patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
        return hidden[:, hidden.shape[1] - patches :].mean(1)

    def text_outputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the text encoder gives (Tensor[B, D]) for tokens (LongTensor[B, T]), before the head."""
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        if self.config.text_pooling == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        if self.config.text_pooling == "cls":
            return hidden[:, 0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Embeddings of images, not normalized, as `pooler_output` (Tensor[B, projection_dim])."""
        return BaseModelOutputWithPooling(pooler_output=self.vision_head(self.image_outputs(pixel_values)))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Embeddings of texts, not normalized, as `pooler_output` (Tensor[B, projection_dim])."""
        return BaseModelOutputWithPooling(pooler_output=self.text_head(self.text_outputs(input_ids, attention_mask)))

    def get_multimodal_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """The sum of both, as `pooler_output`; normalizing comes after it, in the module that follows."""
        texts = self.get_text_features(input_ids, attention_mask).pooler_output
        return BaseModelOutputWithPooling(pooler_output=texts + self.get_image_features(pixel_values).pooler_output)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """Embeddings of whatever there is: texts, images, or both."""
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask)
        if input_ids is None:
            return self.get_image_features(pixel_values)
        return self.get_multimodal_features(input_ids, attention_mask, pixel_values)
