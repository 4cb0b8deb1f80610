"""The networks that radlite learnt from: timm's ResNet-18, and the trunk of ResNet-50 v2 as GluonCV published it.

Importing this file makes ``resnet50v2_gluon`` known to timm, so that every detector can be measured on its features.

ResNet v2: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, https://arxiv.org/abs/1603.05027.
"""

import torch
from timm.models import register_model
from torch import nn
from torch.nn.functional import relu

CHANNELS, BLOCKS = (256, 512, 1024), (3, 4, 6)


class Bottleneck(nn.Module):
    """Norm and ReLU before each convolution; the stride lies on the 3 x 3 one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        active = relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        x = self.conv1(active)
        x = self.conv2(relu(self.bn2(x)))
        return shortcut + self.conv3(relu(self.bn3(x)))


class ResNet50V2Trunk(nn.Module):
    """Stem and stages 1 to 3; each stage's output is taken after the norm and ReLU that the next stage begins with."""

    pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # noqa: RUF012
    feature_info = [  # noqa: RUF012
        {"num_chs": channels, "reduction": 4 * 2**i, "module": f"stage{i + 1}"} for i, channels in enumerate(CHANNELS)
    ]

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for i, (outputs, count) in enumerate(zip(CHANNELS, BLOCKS, strict=True)):
            stride = 1 if i == 0 else 2
            blocks = [Bottleneck(inputs if b == 0 else outputs, outputs, stride if b == 0 else 1) for b in range(count)]
            self.add_module(f"stage{i + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.post3 = nn.BatchNorm2d(inputs)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 3, H, W)`` to ``(B, 1024, H / 16, W / 16)``."""
        return self.stages(x)[-1]

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the three stages."""
        x = torch.max_pool2d(relu(self.bn1(self.conv0(self.bn0(x)))), 3, 2, 1)
        outputs = []
        for stage, norm in ((self.stage1, self.stage2[0].bn1), (self.stage2, self.stage3[0].bn1), (self.stage3, None)):
            x = stage(x)
            outputs.append(relu((norm or self.post3)(x)))
        return outputs

    def forward_intermediates(self, x: torch.Tensor, indices: list[int], **_: object) -> list[torch.Tensor]:
        """The stages asked for."""
        outputs = self.stages(x)
        return [outputs[i] for i in indices]

    def prune_intermediate_layers(self, indices: list[int], **_: object) -> list[int]:
        """Nothing to cut: the trunk ends where the last layer of use does."""
        return indices


@register_model
def resnet50v2_gluon(pretrained: bool = False, **_: object) -> ResNet50V2Trunk:
    """The trunk; its weights are given as a file."""
    if pretrained:
        raise RuntimeError("resnet50v2_gluon has no weights to be looked up: give a file")
    return ResNet50V2Trunk()
